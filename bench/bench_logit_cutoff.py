"""``logit_cutoff`` against sort, softmax and cumulative sum in PyTorch."""

from __future__ import annotations

import pytest
import torch
from conftest import num_bytes

from specbranch import ops

TEMPERATURE, TOP_K, TOP_P, MIN_P = 0.7, 50, 0.9, 0.02


def plain(logits: torch.Tensor) -> torch.Tensor:
    """The lowest logit that top-k, then top-p, and min-p keep."""
    ordered = logits.topk(TOP_K, -1).values / TEMPERATURE
    probs = torch.softmax(ordered, -1)
    keep = (probs.cumsum(-1) - probs < TOP_P) & (probs >= MIN_P * probs[:, :1])
    return ordered.masked_fill(~keep, torch.inf).min(-1).values * TEMPERATURE


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("vocab", [4096, 32000, 128256])
def test_logit_cutoff(measure, batch, vocab):
    torch.manual_seed(0)
    logits = 3 * torch.randn(batch, vocab)
    temperature = torch.full((batch,), TEMPERATURE)
    top_k = torch.full((batch,), TOP_K, dtype=torch.int32)
    top_p, min_p = torch.full((batch,), TOP_P), torch.full((batch,), MIN_P)
    measure(
        {
            "specbranch": lambda: ops.logit_cutoff(logits, temperature, top_k, top_p, min_p),
            "torch": lambda: plain(logits),
        },
        num_bytes(logits),
    )
