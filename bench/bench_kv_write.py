"""``kv_write`` against two indexed assignments in PyTorch."""

from __future__ import annotations

import pytest
import torch
from conftest import num_bytes

from specbranch import ops


@pytest.mark.parametrize("num_tokens", [1, 8, 256])
@pytest.mark.parametrize(("num_heads", "dim"), [(4, 32), (8, 128)])
def test_kv_write(measure, num_tokens, num_heads, dim):
    torch.manual_seed(0)
    key, value = torch.randn(2, 1, num_tokens, num_heads, dim)
    cache = torch.zeros(2, 1, num_heads, 2048, dim)
    slots = torch.arange(100, 100 + num_tokens, dtype=torch.int32).view(1, -1)
    index = slots[0].long()

    def plain() -> None:
        cache[0, 0, :, index] = key[0].transpose(0, 1)
        cache[1, 0, :, index] = value[0].transpose(0, 1)

    measure(
        {"specbranch": lambda: ops.kv_write(key, value, slots, cache), "torch": plain},
        2 * num_bytes(key, value),
    )
