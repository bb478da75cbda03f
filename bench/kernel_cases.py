"""What ``kernels.py`` measures: every op with a CUDA kernel, at the sizes of real models.

A case is an op at one size: a maker of random inputs, our call, and what one would assemble from
PyTorch for the same result without waiting for the device. ``peers.py`` knows other libraries.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

Inputs = dict[str, Any]

VOCABS = (128_256, 32_000, 256_000)  # what matters most comes first: a run may be cut short
GAMMAS = (8, 4, 16)
BATCHES = (1, 8, 64)


@dataclass(frozen=True)
class Case:
    """One op at one size; ``num_bytes`` had to move: inputs read once, outputs written once."""

    op: str
    size: str
    num_bytes: int
    make: Callable[[], Inputs]
    ours: Callable[[Inputs], object]
    plain: Callable[[Inputs], object]


@dataclass(frozen=True)
class Grid:
    """Which sizes: those of the issue, or a corner of them."""

    device: str
    dtype: torch.dtype
    vocabs: tuple[int, ...] = VOCABS
    gammas: tuple[int, ...] = GAMMAS
    batches: tuple[int, ...] = BATCHES
    layers: int = 32
    prefixes: tuple[int, ...] = (2048, 8192)
    width: int = 4096

    @classmethod
    def corner(cls, device: str, dtype: torch.dtype) -> Grid:
        """Small, one of each: for trying the script."""
        return cls(device, dtype, (32_000,), (4,), (1,), layers=2, prefixes=(256,), width=512)


def all_cases(grid: Grid) -> Iterator[Case]:
    """One case of every op, then the next of every op: a run that is cut short has all ops."""
    import kernel_cases_logits
    import kernel_cases_model

    return _in_turns([*kernel_cases_logits.families(grid), *kernel_cases_model.families(grid)])


def _in_turns(families: Iterable[Iterable[Case]]) -> Iterator[Case]:
    for turn in itertools.zip_longest(*families):
        yield from (case for case in turn if case is not None)


def size_of(*tensors: torch.Tensor) -> int:
    """Bytes of all elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def ints(values: Any, device: str) -> torch.Tensor:
    """An int32 tensor on the device."""
    return torch.as_tensor(values, dtype=torch.int32).to(device)


def full(batch: int, value: float, device: str, dtype: torch.dtype) -> torch.Tensor:
    """``value`` for every row."""
    return torch.full((batch,), value, dtype=dtype, device=device)
