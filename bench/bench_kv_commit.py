"""``kv_commit`` against an indexed copy of all layers in PyTorch."""

from __future__ import annotations

import pytest
import torch

from specbranch import ops


@pytest.mark.parametrize("num_moved", [1, 8])
@pytest.mark.parametrize(("layers", "num_heads", "dim"), [(6, 4, 32), (32, 8, 128)])
def test_kv_commit(measure, num_moved, layers, num_heads, dim):
    cache = torch.zeros(layers, 2, 1, num_heads, 512, dim)
    source = torch.arange(300, 300 + 4 * num_moved, 4, dtype=torch.int32).view(1, -1)
    start = torch.tensor([300], dtype=torch.int32)
    length = torch.tensor([num_moved], dtype=torch.int32)
    index = source[0].long()

    def plain() -> None:
        cache[:, :, :, :, 300 : 300 + num_moved] = cache[:, :, :, :, index]

    moved = layers * 2 * num_heads * num_moved * dim * cache.element_size()
    measure(
        {"specbranch": lambda: ops.kv_commit(cache, source, start, length), "torch": plain},
        2 * moved,
    )
