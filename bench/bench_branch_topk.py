"""``branch_topk`` against softmax and topk in PyTorch."""

from __future__ import annotations

import pytest
import torch
from conftest import num_bytes

from specbranch import ops


def plain(logits: torch.Tensor, k_max: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Candidates, how many of them, and the confidence that says so."""
    confidence = torch.softmax(logits, -1).max(-1).values
    num_branches = (k_max * (1 - confidence)).floor().clamp(min=1).int()
    return logits.topk(k_max, -1).indices, num_branches, confidence


@pytest.mark.parametrize("k_max", [4, 8])
@pytest.mark.parametrize("vocab", [4096, 32000, 128256])
def test_branch_topk(measure, k_max, vocab):
    torch.manual_seed(0)
    logits, temperature = 3 * torch.randn(1, vocab), torch.ones(1)
    measure(
        {
            "specbranch": lambda: ops.branch_topk(logits, k_max, temperature),
            "torch": lambda: plain(logits, k_max),
        },
        num_bytes(logits),
    )
