"""Several steps of the draft in a row, each drawing the tokens that the next one reads.

``draft_steps`` works with any ``DecoderState``; a state that has a method of that name
(``models/llama.py``: one native call, without the interpreter lock) is asked instead and gives the
same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from . import ops
from .models.protocol import DecoderState
from .sampling_params import SamplingParams


class Sampler:
    """How rows of logits are cut and drawn from for one request: parameters as the ops take them.

    Args:
        params: temperature, cutoffs and seed.
        draw: ``"inverse_cdf"`` or ``"gumbel"``.
        max_rows: most rows of one call.
        device: where the logits are.
    """

    def __init__(
        self,
        params: SamplingParams,
        draw: str,
        max_rows: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.draw = draw

        def rows(dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(max_rows, dtype=dtype, device=device)

        self.temperature, self._top_p, self._min_p = (rows(torch.float32) for _ in range(3))
        self.seed, self.position = rows(torch.int64), rows(torch.int64)
        self._top_k = rows(torch.int32)
        self._lane = torch.arange(max_rows, dtype=torch.int32, device=device)
        # For calls with a single row: its temperature, seed and position.
        self.row = (self.temperature[:1], self.seed[:1], self.position[:1])
        # Writing through NumPy costs a tenth of a torch operation.
        self._on_host = self.position.numpy() if self.position.device.type == "cpu" else None
        self.load(params)

    def load(self, params: SamplingParams) -> None:
        """Take the parameters of another request, into the same tensors."""
        self.params = params
        self.temperature.fill_(params.temperature)
        self.seed.fill_(params.seed)
        self._top_k.fill_(params.top_k)
        self._top_p.fill_(params.top_p)
        self._min_p.fill_(params.min_p)

    def place(self, position: int) -> None:
        """Set the position of a single row."""
        if self._on_host is not None:
            self._on_host[0] = position
        else:
            self.row[2].fill_(position)

    def cut(self, logits: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor | None:
        """The cutoff of each row of ``logits [rows, V]``; None where nothing is cut."""
        if not self.params.has_cutoff:
            return None
        count = logits.shape[0]
        cutoff: torch.Tensor = ops.logit_cutoff(
            logits,
            self.temperature[:count],
            self._top_k[:count],
            self._top_p[:count],
            self._min_p[:count],
            out=out,
        )
        return cutoff

    def draw_drafts(
        self, logits: torch.Tensor, cutoff: torch.Tensor | None, position: int | torch.Tensor
    ) -> ops.SampleResult:
        """One token a row for the draft; lane i is row i. ``position``: a number, or ``[rows]``."""
        count = logits.shape[0]
        self.position[:count] = position
        return ops.sample(
            logits,
            self.temperature[:count],
            self.seed[:count],
            self.position[:count],
            cutoff=cutoff,
            lane=self._lane[:count],
            draw=self.draw,
            purpose=ops.PURPOSE_DRAFT,
        )


class DraftBuffers:
    """What a drafting stage fills in: row ``[step, branch]`` of each.

    ``logits`` ``[steps, branches, V]`` are those the tokens were drawn from, ``confidence`` is the
    largest probability of that row: known before the token is drawn, unlike the token's own.
    ``token_view`` and ``confidence_view`` are what ``fetch`` brought to the host.
    """

    def __init__(
        self,
        steps: int,
        branches: int,
        vocab: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.logits = torch.empty(steps, branches, vocab, dtype=dtype, device=device)
        self.cutoff, self.confidence = (
            torch.empty(steps, branches, dtype=torch.float32, device=device) for _ in range(2)
        )
        self.tokens = torch.empty(steps, branches, dtype=torch.int32, device=device)
        self._host = [tensor.cpu() for tensor in (self.tokens, self.confidence)]
        # Reading through NumPy costs a tenth of a torch operation.
        self.token_view, self.confidence_view = (tensor.numpy() for tensor in self._host)

    def fetch(self) -> None:
        """Bring tokens and confidence to where the views are."""
        if self.tokens.device.type != "cpu":
            for host, tensor in zip(self._host, (self.tokens, self.confidence), strict=True):
                host.copy_(tensor)


class DraftRequest(NamedTuple):
    """The arguments of ``draft_steps``: what a state's own ``draft_steps`` is given."""

    state: DecoderState
    tokens: Sequence[int]
    branches: int
    steps: int
    sampler: Sampler
    position: int
    stop_below: float
    out: DraftBuffers


def nan_draft(position: int) -> ValueError:
    """What a bad row of the draft's logits ends a request with."""
    return ValueError(f"draft gave NaN logits for position {position}")


def draft_steps(
    state: DecoderState,
    tokens: Sequence[int],
    branches: int,
    steps: int,
    sampler: Sampler,
    position: int,
    stop_below: float,
    out: DraftBuffers,
) -> int:
    """Draft up to ``steps`` tokens a branch into ``out``; returns how many steps were taken.

    ``branches`` 0: ``tokens`` go behind the prefix as a chain, and what was drawn but for the last
    token behind them; all of it is committed to the state's prefix. Else ``tokens`` are the heads
    of that many branches, and what grows from them stays pending: node ``step * branches + i``.
    Ends early after the step by which every branch has met a confidence below ``stop_below``.

    Raises:
        ValueError: the draft gave a NaN logit; the message names the position.
    """
    own = getattr(state, "draft_steps", None)
    request = DraftRequest(state, tokens, branches, steps, sampler, position, stop_below, out)
    taken: int = own(request) if own is not None else _one_by_one(*request)
    out.fetch()
    width = max(branches, 1)
    if taken and out.token_view[taken - 1, :width].min() < 0:
        raise nan_draft(position + taken - 1)
    return taken


def confidence_of(drawn: ops.SampleResult) -> torch.Tensor:
    """The draft's max probability: known before the token is drawn, unlike the token's own."""
    confidence: torch.Tensor = drawn.max_probability
    return confidence


def entropy_of(drawn: ops.SampleResult) -> torch.Tensor:
    """The entropy of the draft's row, in nats: known before the token is drawn."""
    entropy: torch.Tensor = drawn.entropy
    return entropy


def draft_until(
    state: DecoderState,
    tokens: Sequence[int],
    steps: int,
    sampler: Sampler,
    position: int,
    max_entropy: float,
    out: DraftBuffers,
) -> tuple[int, bool]:
    """Draft a chain behind ``tokens``, up to ``steps`` long, as ``draft_steps`` does.

    Ends early after a step whose entropy is above ``max_entropy``; returns how many steps were
    taken, and whether it ended early.

    Raises:
        ValueError: the draft gave a NaN logit; the message names the position.
    """
    inputs = torch.tensor(tokens, dtype=torch.int64)
    taken, unsure = 0, False
    while taken < steps and not unsure:
        drawn = take_step(state, inputs, None, 1, taken, sampler, position + taken, out)
        inputs, taken = drawn.token, taken + 1
        if int(drawn.token) < 0:
            raise nan_draft(position + taken - 1)
        unsure = float(entropy_of(drawn)) > max_entropy
    out.fetch()
    return taken, unsure


def take_step(
    state: DecoderState,
    inputs: torch.Tensor,
    parents: Sequence[int] | None,
    width: int,
    step: int,
    sampler: Sampler,
    position: int | torch.Tensor,
    out: DraftBuffers,
) -> ops.SampleResult:
    """One forward and ``width`` draws, kept in ``out``; a chain (no parents) is committed."""
    rows = out.logits[step, :width]
    rows.copy_(state.forward(inputs, parents).logits[-width:])
    if parents is None:
        state.commit(range(len(inputs)))
    drawn = sampler.draw_drafts(rows, sampler.cut(rows, out.cutoff[step, :width]), position)
    out.tokens[step, :width] = drawn.token
    out.confidence[step, :width] = confidence_of(drawn)
    return drawn


def _one_by_one(
    state: DecoderState,
    tokens: Sequence[int],
    branches: int,
    steps: int,
    sampler: Sampler,
    position: int,
    stop_below: float,
    out: DraftBuffers,
) -> int:
    width = max(branches, 1)
    inputs = torch.tensor(tokens, dtype=torch.int64)
    parents: list[int] | None = [-1] * branches if branches else None
    alive = torch.ones(width, dtype=torch.bool, device=out.tokens.device)
    for step in range(steps):
        drawn = take_step(state, inputs, parents, width, step, sampler, position + step, out)
        if branches:
            parents = list(range(step * branches, (step + 1) * branches))
        alive &= confidence_of(drawn) >= stop_below
        if not alive.any() or int(drawn.token.min()) < 0:
            return step + 1
        inputs = drawn.token
    return steps
