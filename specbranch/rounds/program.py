"""One round as a fixed sequence of launches, with no value read by the host.

``RoundProgram`` is plain decoding and the base of ``sps.py`` and ``specbranch.py``. All that varies
from round to round (lengths, tokens, seeds, decisions) is device memory, so that the launches can
be captured once and replayed.

What differs from the rounds of ``policies/``, which the host directs: a target forward always
reads gamma + 1 tokens, a branch stage always grows k_max branches of gamma tokens (those beyond the
adaptive k are not candidates), and the draft reads the last token of X + chain anew each round.
None of it changes what is committed at a given verdict.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import ops
from ..drafting import Sampler
from ..models.llama import LlamaState
from ..ops.rounds import RoundState, advance
from ..sampling_params import SamplingParams
from ..session import Settings
from .parcel import Devices, Step, Work


class RoundProgram:
    """One round of plain decoding; the base of the others.

    Args:
        target, draft: models with their states, whose caches the program writes; the draft may be
            on another device.
        settings, params: as for ``Session``; parameters other than whether anything is cut may be
            changed by ``load`` later.
        room: most committed tokens.
    """

    plain = True
    needs_draft = False

    def __init__(
        self,
        target: LlamaState,
        draft: LlamaState | None,
        settings: Settings,
        params: SamplingParams,
        room: int,
    ) -> None:
        self.target, self.draft, self.params = target, draft, params
        device = target.model.device
        self.devices = Devices(device, device if draft is None else draft.model.device)
        self.gamma = 0 if self.plain else settings.gamma
        self.state = RoundState.empty(1, self.gamma, room, device)
        self.clock = torch.zeros(2, dtype=torch.int64, device=device)  # see ops.stopwatch
        self._settings = settings
        self._sampler = Sampler(params, settings.draw, self.gamma + 1, device)
        self._verdict = torch.zeros(3, 1, dtype=torch.int32, device=device)
        self._offsets = torch.arange(self.gamma + 1, dtype=torch.int32, device=device).view(1, -1)
        self._no_branches = torch.zeros(1, 0, dtype=torch.int32, device=device)
        self._no_count = torch.zeros(1, dtype=torch.int32, device=device)
        self._logits = torch.empty(
            self.gamma + 1, target.model.vocab_size, dtype=target.model.dtype, device=device
        )
        self._prepare()

    def _prepare(self) -> None:
        """Allocate what a round needs beyond plain decoding's."""

    # ------------------------------------------------------------------ a request
    def load(self, tokens: list[int], params: SamplingParams) -> None:
        """Start from ``tokens`` (at least 2), all but the last of them in both caches."""
        state, count = self.state, len(tokens)
        state.tokens[0, :count] = torch.tensor(tokens)
        state.length.fill_(count)
        state.branch_point.fill_(count)
        state.target_prefix.fill_(count - 1)
        state.chain_length.zero_()
        state.commit_length.zero_()
        state.round.zero_()
        self.clock.zero_()
        state.target_inputs.zero_()
        state.target_inputs[0, 0] = tokens[-1]
        state.draft_inputs[0] = torch.tensor(tokens[-2:])
        self._verdict.fill_(-1)
        self._load_params(params)

    def _load_params(self, params: SamplingParams) -> None:
        self.params = params
        self._sampler.load(params)

    # ------------------------------------------------------------------ a round
    def steps(self) -> list[Step]:
        """The round."""
        return [self._timed(self._read, self._judge)]

    def _timed(self, *parts: Callable[[], None]) -> Work:
        """Work of the target's side, whose time is added to ``clock``."""

        def run() -> None:
            ops.stopwatch(self.clock, start=True)
            for part in parts:
                part()
            ops.stopwatch(self.clock, start=False)

        return Work("target", run)

    def _read(self) -> None:
        """Logits after X's last token and after each of the chain (garbage behind its end)."""
        positions = self.state.target_prefix + self._offsets
        tokens = self.state.target_inputs[0]
        prefix = self.state.target_prefix
        self._logits.copy_(self.target.run(tokens, positions, positions, prefix, None))

    def _judge(self) -> None:
        """The verdict, and what follows from it for the next round."""
        state, sampler = self.state, self._sampler
        draft_logits, draft_cutoff = self._chain_logits()
        cutoff = sampler.cut(self._logits)
        ops.verify(
            self._logits.unsqueeze(0),
            draft_logits,
            state.chain,
            state.chain_length,
            *self._candidates(),
            sampler.temperature[:1],
            sampler.seed[:1],
            state.length.to(torch.int64),
            target_cutoff=None if cutoff is None else cutoff.unsqueeze(0),
            draft_cutoff=draft_cutoff,
            draw=self._settings.draw,
            out=tuple(self._verdict),
        )
        self._advance()

    def _candidates(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._no_branches, self._no_count

    def _chain_logits(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return None, None

    def _advance(self) -> None:
        accepted, token, survivor = self._verdict
        drafted = self.state.chain.new_empty(1, self.gamma, 0)
        advance(self.state, accepted, token, survivor, drafted, drafted.float(), epsilon=0.0)
