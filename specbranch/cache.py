"""The slot cache: forking copies nothing, rollback is a length, a kept branch moves few slots."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import ops


class SlotCache:
    """Keys and values of one request, ``[layers, 2, batch, kv_heads, slots, head_dim]``.

    The prefix lies in the slots ``0 .. length - 1``, pending tree nodes right behind it. Keys are
    stored rotated by their logical position, so that slots may move freely.

    Args:
        layers, kv_heads, head_dim: sizes of the model.
        slots: room for the prefix and the tree together.
        dtype, device: of the tensor, allocated once.
        backend: which kernels move slots; None: those of the device.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        slots: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        backend: ops.Backend | None = None,
    ) -> None:
        shape = (layers, 2, 1, kv_heads, slots, head_dim)
        self.data = torch.zeros(shape, dtype=dtype, device=device)
        self.slots, self._backend = slots, backend
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the cache."""
        return self.data.numel() * self.data.element_size()

    def rollback(self, length: int) -> None:
        """Cut the prefix; nothing moves.

        Raises:
            ValueError: longer than the prefix, or negative.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"length was {length}; it must be in 0 .. {self.length}")
        self.length = length

    def commit(self, path: Sequence[int]) -> None:
        """Append the nodes ``path`` (ascending) to the prefix; moves those out of place."""
        in_place = 0
        while in_place < len(path) and path[in_place] == in_place:
            in_place += 1
        start = self.length
        moving = path[in_place:]
        self.length += len(path)
        if len(moving) == 0:
            return
        count = len(moving)
        numbers = [start + in_place, count, *(start + node for node in moving)]
        # One transfer for all three where the cache is on a device.
        device = torch.tensor(numbers, dtype=torch.int32).to(self.data.device)
        ops.kv_commit(
            self.data, device[2:].view(1, count), device[:1], device[1:2], backend=self._backend
        )
