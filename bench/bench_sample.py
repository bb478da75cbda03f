"""``sample`` (token, probability, maximum, entropy) against softmax and multinomial in PyTorch."""

from __future__ import annotations

import pytest
import torch
from conftest import num_bytes

from specbranch import ops


def plain(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same four results."""
    log_probs = torch.log_softmax(logits / 0.7, -1)
    probs = log_probs.exp()
    token = torch.multinomial(probs, 1)
    return token, probs.gather(1, token), probs.max(-1).values, -(probs * log_probs).sum(-1)


@pytest.mark.parametrize("draw", ["inverse_cdf", "gumbel"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("vocab", [4096, 32000, 128256])
def test_sample(measure, draw, batch, vocab):
    torch.manual_seed(0)
    logits = 3 * torch.randn(batch, vocab)
    temperature = torch.full((batch,), 0.7)
    seed, position = torch.arange(batch), torch.full((batch,), 10)
    measure(
        {
            "specbranch": lambda: ops.sample(logits, temperature, seed, position, draw=draw),
            "torch": lambda: plain(logits),
        },
        num_bytes(logits),
    )
