"""Greedy outputs that differ: was the target itself undecided there?

In bfloat16 the logits of one position depend on how many rows a forward has: another product
kernel, another order of the sums. Where the two best tokens are closer than that, either is the
target's own choice. In float32 the same happens a thousand times less often; it is no excuse there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from specbranch.models import CausalLM

# Two logits may be this far apart, as a share of the best one: neighbouring bfloat16 numbers are
# up to 2^-7 of their size apart, and each of the two logits may be off by one such step.
TIE = 2.0**-6


def first_difference(tokens: Sequence[int], wanted: Sequence[int]) -> int | None:
    """The first position in which two outputs differ; None: they do not."""
    for position, (token, other) in enumerate(zip(tokens, wanted, strict=False)):
        if token != other:
            return position
    return None if len(tokens) == len(wanted) else min(len(tokens), len(wanted))


def judge(
    target: CausalLM, prefix: Sequence[int], tokens: Sequence[int], wanted: Sequence[int]
) -> dict[str, Any]:
    """Where ``tokens`` leaves ``wanted``, and by how much the target prefers one to the other.

    Args:
        target: the model whose choice it is.
        prefix: the prompt both go on from.
        tokens, wanted: outputs that differ.

    Returns:
        ``position``; ``gap``: the best logit after the common prefix less the worse one of the two
        tokens' (at least the distance of the two best), None where one output just ends;
        ``tolerance``; ``is_tie``: in bfloat16, and the gap is within the tolerance.
    """
    position = first_difference(tokens, wanted)
    assert position is not None, "the caller has seen a difference"
    found: dict[str, Any] = {"position": position, "gap": None, "tolerance": None, "is_tie": False}
    if position == min(len(tokens), len(wanted)):
        return found
    logits = _next_logits(target, [*prefix, *tokens[:position]])
    best = float(logits.max())
    gap = best - float(logits[[tokens[position], wanted[position]]].min())
    tolerance = TIE * abs(best)
    is_tie = target.dtype == torch.bfloat16 and gap <= tolerance
    return found | {"gap": gap, "tolerance": tolerance, "is_tie": is_tie}


def _next_logits(target: CausalLM, tokens: list[int]) -> torch.Tensor:
    """Logits ``[V]`` float32 on the CPU after ``tokens``."""
    state = target.new_state(len(tokens), 1)
    state.prefill(torch.tensor(tokens[:-1], dtype=torch.int64))
    logits = state.forward(torch.tensor(tokens[-1:], dtype=torch.int64)).logits[0]
    return logits.float().cpu()
