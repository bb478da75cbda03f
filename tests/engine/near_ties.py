"""Judging output that may differ from plain decoding only where the target nearly has a tie.

A device computes a row's logits in another order when it computes more rows at once, and rounds
them to bfloat16. So the argmax may change where two logits are close, and everything after such a
position is another text. What remains checkable, at every position: the token's score, by a float32
model on the CPU that is fed this very text, is the best one, or within a tolerance of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from specbranch import ops
from specbranch.models.protocol import CausalLM
from specbranch.testing.oracles_sampling import gumbel_noise

#: In logits. A bfloat16 forward of the demo target errs by up to 0.16 on the CPU (test_near_ties.py
#: measures it), the two logits of a tie in opposite directions, and a device rounds more often.
BFLOAT16_TOLERANCE = 0.5


@dataclass(frozen=True)
class Coupled:
    """Scores are logits over temperature plus the noise of a seed."""

    seed: int
    temperature: float = 1.0


def deficits(
    judge: CausalLM, prompt: Sequence[int], tokens: Sequence[int], coupled: Coupled | None = None
) -> torch.Tensor:
    """How far each token's score lies below the best of its row, ``[n]``; 0: it is the best."""
    scores = logits_of(judge, prompt, tokens)
    if coupled is not None:
        noise = [
            torch.from_numpy(gumbel_noise(coupled.seed, len(prompt) + step, judge.vocab_size))
            for step in range(len(tokens))
        ]
        scores = scores / coupled.temperature + torch.stack(noise)
    chosen = scores.gather(1, torch.tensor(list(tokens)).unsqueeze(1)).squeeze(1)
    return scores.amax(1) - chosen


def logits_of(judge: CausalLM, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """What the judge says after the prompt and each token but the last: float64 ``[n, V]``."""
    state = judge.new_state(len(prompt) + len(tokens), len(tokens))
    inputs = torch.tensor([prompt[-1], *tokens[:-1]])
    with ops.limit_threads(1):  # tests share their cores
        state.prefill(torch.tensor(list(prompt[:-1])))
        return state.forward(inputs).logits.double().cpu()


def assert_greedy(
    judge: CausalLM,
    prompt: Sequence[int],
    tokens: Sequence[int],
    tolerance: float,
    coupled: Coupled | None = None,
) -> None:
    """Every token is the target's choice, up to near ties."""
    found = deficits(judge, prompt, tokens, coupled)
    worst = int(found.argmax())
    assert found[worst] <= tolerance, (
        f"token {tokens[worst]} at position {worst} has a score {found[worst]:.4f} below the best; "
        f"at most {tolerance} may be rounding"
    )


def assert_same_up_to_ties(
    judge: CausalLM,
    prompt: Sequence[int],
    tokens: Sequence[int],
    expected: Sequence[int],
    tolerance: float,
    coupled: Coupled | None = None,
) -> None:
    """Both are as long and greedy; where they part, both tokens are nearly the best."""
    assert len(tokens) == len(expected)
    assert_greedy(judge, prompt, tokens, tolerance, coupled)
    assert_greedy(judge, prompt, expected, tolerance, coupled)
