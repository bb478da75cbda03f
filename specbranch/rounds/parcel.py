"""What the two sides of a round tell each other, and the steps that a round is made of.

A round is a list of steps in an order that would do on one thread: ``Work`` of one side, which
touches that side's memory only, and ``Send``, which gives the other side what was written for it.
Steps of one side run in this order; of different sides only a ``Send`` orders them. How that is
brought about (one thread, two streams of a graph, two devices) is a runner's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

Side = Literal["target", "draft"]

ALIGNMENT = 256  # bytes; kernels read rows of logits in vectors


class Devices(NamedTuple):
    """Where the two sides keep their tensors; one device where there is no draft."""

    target: torch.device
    draft: torch.device

    @property
    def apart(self) -> bool:
        """Whether they share no memory."""
        return self.target != self.draft


class Field(NamedTuple):
    """One tensor of a parcel."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class Parcel:
    """Tensors that one side writes and the other reads, all sent in one copy.

    Where both sides are on one device the two ends are the same memory and nothing is copied.

    Args:
        sender: the side that writes.
        devices: of the two sides.
        fields: the tensors by name.
    """

    def __init__(self, sender: Side, devices: Devices, fields: dict[str, Field]) -> None:
        self.sender: Side = sender
        self.receiver: Side = "draft" if sender == "target" else "target"
        self.crosses = devices.apart
        self._sent = _memory(fields, getattr(devices, sender))
        self._received = self._sent
        if self.crosses:
            self._received = _memory(fields, getattr(devices, self.receiver))
        self.sent, self.received = _views(self._sent, fields), _views(self._received, fields)

    def copy(self) -> None:
        """Bring what was sent to the receiver; on CUDA between the devices' current streams."""
        if self.crosses:
            self._received.copy_(self._sent, non_blocking=True)


@dataclass(frozen=True)
class Work:
    """Launches of one side."""

    side: Side
    run: Callable[[], None]


@dataclass(frozen=True)
class Send:
    """The receiver's further steps see what the sender has written."""

    parcel: Parcel


Step = Work | Send


def run_in_order(steps: Sequence[Step]) -> None:
    """One step after the other."""
    with torch.inference_mode():
        for step in steps:
            if isinstance(step, Send):
                step.parcel.copy()
            else:
                step.run()


def _size(field: Field) -> int:
    count = field.dtype.itemsize
    for size in field.shape:
        count *= size
    return -(-count // ALIGNMENT) * ALIGNMENT


def _memory(fields: dict[str, Field], device: torch.device) -> torch.Tensor:
    size = sum(_size(field) for field in fields.values())
    return torch.zeros(size, dtype=torch.uint8, device=device)


def _views(memory: torch.Tensor, fields: dict[str, Field]) -> dict[str, torch.Tensor]:
    """The fields, one behind the other."""
    views, start = {}, 0
    for name, field in fields.items():
        end = start + _size(field)
        flat, count = memory[start:end].view(field.dtype), torch.Size(field.shape).numel()
        views[name] = flat[:count].view(field.shape)
        start = end
    return views
