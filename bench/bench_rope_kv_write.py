"""``rope_kv_write`` against split, rotate-half and indexed assignment in PyTorch."""

from __future__ import annotations

import pytest
import torch
from conftest import num_bytes

from specbranch import ops


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate-half RoPE of ``x [N, H, D]``."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


@pytest.mark.parametrize("num_tokens", [1, 8, 64])
@pytest.mark.parametrize(("num_q_heads", "num_kv_heads", "dim"), [(8, 4, 32), (32, 8, 128)])
def test_rope_kv_write(measure, num_tokens, num_q_heads, num_kv_heads, dim):
    torch.manual_seed(0)
    qkv = torch.randn(1, num_tokens, (num_q_heads + 2 * num_kv_heads) * dim)
    angles = torch.arange(2048).outer(1e4 ** (-torch.arange(0, dim, 2) / dim))
    cos, sin = angles.cos().contiguous(), angles.sin().contiguous()
    cache = torch.zeros(2, 1, num_kv_heads, 2048, dim)
    positions = torch.arange(100, 100 + num_tokens, dtype=torch.int32).view(1, -1)
    index = positions[0].long()

    def plain() -> torch.Tensor:
        sizes = [num_q_heads, num_kv_heads, num_kv_heads]
        q, key, value = qkv[0].view(num_tokens, -1, dim).split(sizes, 1)
        row_cos, row_sin = cos[index].unsqueeze(1), sin[index].unsqueeze(1)
        cache[0, 0, :, index] = rotated(key, row_cos, row_sin).transpose(0, 1)
        cache[1, 0, :, index] = value.transpose(0, 1)
        return rotated(q, row_cos, row_sin)

    def ours() -> object:
        return ops.rope_kv_write(qkv, cos, sin, positions, positions, cache, num_q_heads)

    measure({"specbranch": ours, "torch": plain}, 2 * num_bytes(qkv))
