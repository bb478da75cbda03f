"""``tree_mask`` against walking the parents into a dense mask in PyTorch."""

from __future__ import annotations

import pytest
import torch
from conftest import num_bytes

from specbranch import ops


def plain(parents: torch.Tensor) -> torch.Tensor:
    """Row i is the parent's row and i itself."""
    num_nodes = parents.shape[1]
    mask = torch.eye(num_nodes, dtype=torch.bool)
    for i, parent in enumerate(parents[0].tolist()):
        if parent >= 0:
            mask[i] |= mask[parent]
    return mask


@pytest.mark.parametrize("num_nodes", [8, 64, 256])
def test_tree_mask(measure, num_nodes):
    parents = torch.tensor([[(i - 4) if i >= 4 else -1 for i in range(num_nodes)]]).int()
    measure(
        {"specbranch": lambda: ops.tree_mask(parents), "torch": lambda: plain(parents)},
        num_bytes(parents) * (2 + (num_nodes + 31) // 32),
    )
