"""Outputs held against ``ar``'s: where they differ, and whether the target itself was undecided.

In bfloat16 the logits of one position depend on how many rows a forward has: another product
kernel, another order of the sums. Where the two best tokens are closer than that, either is the
target's own choice. In float32 the same happens a thousand times less often; it is no excuse there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .. import ops
from ..models.protocol import CausalLM
from ..sampling_params import SamplingParams
from .runs import Run

# Two logits may be this far apart, as a share of the best one: neighbouring bfloat16 numbers are
# up to 2^-7 of their size apart, and each of the two logits may be off by one such step.
TIE = 2.0**-6
TIES = {torch.bfloat16: TIE, torch.float16: 2.0**-9}


@dataclass(frozen=True)
class Difference:
    """Where a run's output leaves ``ar``'s; token -1: it has ended there.

    ``gap``: how far the worse of the two tokens is below the target's best, in logits (in
    ``coupled`` mode at a temperature: over the temperature, with the noise, or how far below the
    cutoff if that is more); None where one just ends. ``tolerance``: up to which it is a tie; None
    in float32, where nothing is one.
    """

    method: str
    prompt: int
    repeat: int
    position: int
    token: int
    wanted: int
    gap: float | None
    tolerance: float | None
    is_tie: bool

    def __str__(self) -> str:
        gap = "" if self.gap is None else f", {self.gap:.3g} apart in the target's logits"
        kind = "a tie of the target's own" if self.is_tie else "NOT LOSSLESS"
        return (
            f"{kind}: {self.method}, prompt {self.prompt}, position {self.position}: "
            f"{_named(self.token)}, but ar has {_named(self.wanted)}{gap}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def _named(token: int) -> str:
    return "the end" if token < 0 else f"token {token}"


def first_difference(tokens: Sequence[int], wanted: Sequence[int]) -> int | None:
    """The first position in which two outputs differ; None: they do not."""
    for position, (token, other) in enumerate(zip(tokens, wanted, strict=False)):
        if token != other:
            return position
    return None if len(tokens) == len(wanted) else min(len(tokens), len(wanted))


def difference(
    target: CausalLM,
    prefix: Sequence[int],
    run: Run,
    wanted: Sequence[int],
    params: SamplingParams | None = None,
) -> Difference:
    """Where a run's output, which is not ``wanted``, leaves it; arguments as for ``judge``."""
    verdict = judge(target, prefix, run.tokens, wanted, params)
    at = verdict["position"]
    token, other = (row[at] if at < len(row) else -1 for row in (run.tokens, wanted))
    return Difference(run.method, run.prompt, run.repeat, token=token, wanted=other, **verdict)


def judge(
    target: CausalLM,
    prefix: Sequence[int],
    tokens: Sequence[int],
    wanted: Sequence[int],
    params: SamplingParams | None = None,
) -> dict[str, Any]:
    """Where ``tokens`` leaves ``wanted``, and by how much the target prefers one to the other.

    Args:
        target: the model whose choice it is.
        prefix: the prompt both go on from.
        tokens, wanted: outputs that differ.
        params: with a temperature above 0 for outputs of ``coupled`` mode; None: greedy ones.

    Returns:
        ``position``; ``gap``: the best score after the common prefix less the worse one of the two
        tokens' (at least the distance of the two best), None where one output just ends. Where
        top-k, top-p or min-p cut, the best is that of the tokens kept, and one that is cut misses
        by what it is below the cutoff too. ``tolerance``: None in float32; ``is_tie``: in bfloat16
        or float16, and the gap is within the tolerance.
    """
    position = first_difference(tokens, wanted)
    assert position is not None, "the caller has seen a difference"
    found: dict[str, Any] = {"position": position, "gap": None, "tolerance": None, "is_tie": False}
    if position == min(len(tokens), len(wanted)):
        return found
    logits = _next_logits(target, [*prefix, *tokens[:position]])
    missing, scale = logits.max() - logits, 1.0
    if params is not None and params.temperature > 0:
        missing = _missing(logits, params, len(prefix) + position)
        scale = params.temperature
    gap = float(missing[[tokens[position], wanted[position]]].max())
    if target.dtype not in TIES:
        return found | {"gap": gap}
    tolerance = TIES[target.dtype] * abs(float(logits.max())) / scale
    return found | {"gap": gap, "tolerance": tolerance, "is_tie": gap <= tolerance}


def _missing(logits: torch.Tensor, params: SamplingParams, position: int) -> torch.Tensor:
    """By how much each token ``[V]`` is not the coupled draw, in logits over the temperature.

    A kept token is below the best kept one, with the noise; one that is cut is below the cutoff as
    well. A top-p cutoff is taken where it is: which tokens make up the mass is not put in doubt.
    """
    scores = logits.double() / params.temperature
    noisy = scores + _noise(params.seed, position, len(logits))
    if not params.has_cutoff:
        return noisy.max() - noisy
    cuts = params.top_k, params.top_p, params.min_p
    cutoff = float(ops.logit_cutoff(logits[None], params.temperature, *cuts)[0])
    below_best = noisy[logits >= cutoff].max() - noisy
    return torch.maximum(below_best, cutoff / params.temperature - scores)


def _noise(seed: int, position: int, vocab_size: int) -> torch.Tensor:
    from ..testing.oracles_sampling import gumbel_noise

    return torch.from_numpy(gumbel_noise(seed, position, vocab_size))


def _next_logits(target: CausalLM, tokens: list[int]) -> torch.Tensor:
    """Logits ``[V]`` float32 on the CPU after ``tokens``."""
    state = target.new_state(len(tokens), 1)
    state.prefill(torch.tensor(tokens[:-1], dtype=torch.int64))
    logits = state.forward(torch.tensor(tokens[-1:], dtype=torch.int64)).logits[0]
    return logits.float().cpu()
