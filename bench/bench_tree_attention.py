"""``tree_attention`` against scaled_dot_product_attention with a dense mask in PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import num_bytes

from specbranch import ops


def plain(q: torch.Tensor, cache: torch.Tensor, length: int, mask: torch.Tensor) -> torch.Tensor:
    """Over the filled slots, the prefix visible to all."""
    key, value = cache[0, :, :, :length], cache[1, :, :, :length]
    return F.scaled_dot_product_attention(
        q.transpose(1, 2), key, value, attn_mask=mask, enable_gqa=True
    ).transpose(1, 2)


@pytest.mark.parametrize("num_nodes", [1, 8, 32])
@pytest.mark.parametrize("prefix", [128, 2048])
@pytest.mark.parametrize(("num_q_heads", "num_kv_heads", "dim"), [(8, 4, 32), (32, 8, 128)])
def test_tree_attention(measure, num_nodes, prefix, num_q_heads, num_kv_heads, dim):
    torch.manual_seed(0)
    q = torch.randn(1, num_nodes, num_q_heads, dim)
    cache = torch.randn(2, 1, num_kv_heads, prefix + num_nodes, dim)
    parents = torch.tensor([[i - 4 if i >= 4 else -1 for i in range(num_nodes)]]).int()
    bits = ops.tree_mask(parents).bits
    dense = ops.dense_mask(bits, num_nodes)
    mask = torch.cat([torch.ones(num_nodes, prefix, dtype=torch.bool), dense[0]], 1)
    length = torch.tensor([prefix], dtype=torch.int32)
    measure(
        {
            "specbranch": lambda: ops.tree_attention(q, cache, length, bits),
            "torch": lambda: plain(q, cache, prefix + num_nodes, mask),
        },
        num_bytes(q, q, cache),
    )
