"""``verify`` against softmax, gather, compare, residual and multinomial in PyTorch."""

from __future__ import annotations

import pytest
import torch
from conftest import num_bytes

from specbranch import ops


def plain(
    target: torch.Tensor, draft: torch.Tensor, tokens: torch.Tensor, temperature: float
) -> int:
    """Leviathan et al. for one row, as most engines write it."""
    target_probs = torch.softmax(target / temperature, -1)
    draft_probs = torch.softmax(draft / temperature, -1)
    num_tokens = len(tokens)
    steps = torch.arange(num_tokens)
    accepted = torch.rand(num_tokens) * draft_probs[steps, tokens] < target_probs[steps, tokens]
    num_accepted = int(torch.cumprod(accepted.int(), 0).sum())
    last = target_probs[num_accepted]
    if num_accepted < num_tokens:
        last = torch.clamp(last - draft_probs[num_accepted], min=0)
    return int(torch.multinomial(last, 1))


@pytest.mark.parametrize("gamma", [4, 8])
@pytest.mark.parametrize("vocab", [4096, 32000, 128256])
def test_verify(measure, gamma, vocab):
    torch.manual_seed(0)
    draft = torch.randn(1, gamma, vocab)
    target = torch.cat([draft, torch.randn(1, 1, vocab)], 1) + 0.1 * torch.randn(1, 1, vocab)
    tokens = torch.multinomial(torch.softmax(draft[0], -1), 1).view(1, gamma).int()
    length = torch.tensor([gamma], dtype=torch.int32)
    branches = torch.zeros(1, 1, dtype=torch.int32)
    num_branches = torch.zeros(1, dtype=torch.int32)
    temperature = torch.tensor([0.7])
    seed, position = torch.tensor([1]), torch.tensor([10])
    drafted = tokens[0].long()

    def ours() -> object:
        return ops.verify(
            target, draft, tokens, length, branches, num_branches, temperature, seed, position
        )

    measure(
        {"specbranch": ours, "torch": lambda: plain(target[0], draft[0], drafted, 0.7)},
        num_bytes(target, draft),
    )
