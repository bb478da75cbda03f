"""One request's state and the verbs that policies are written in: draft, grow, verify, commit.

Committed tokens ``X`` have length ``n``. Between rounds the target's cache holds ``X[:-1]`` and the
draft's a prefix of ``X + chain``; both invariants are kept by ``commit`` alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from . import ops
from .drafting import DraftBuffers, Sampler, draft_steps
from .judge import Judge
from .lanes import Lanes
from .models.protocol import CausalLM, DecoderState
from .sampling_params import SamplingParams, check_float, check_int
from .stats import Stats


@dataclass(frozen=True)
class Settings:
    """How a policy speculates.

    Args:
        gamma: draft length, tokens drafted ahead in one stage.
        k_max: most branches grown at the branch point.
        epsilon: confidence (the draft's max probability) below which it is not trusted.
        draft_stage: after a rejection or a miss, ``"serial"`` drafts a chain while the target
            waits (the paper), ``"overlap"`` goes straight to a branch stage.
        verify: ``"rejection"`` sampling, or ``"coupled"`` Gumbel noise (same sequence as ``ar``).
    """

    gamma: int = 3
    k_max: int = 3
    epsilon: float = 0.1
    draft_stage: str = "overlap"
    verify: str = "rejection"

    def __post_init__(self) -> None:
        check_int("gamma", self.gamma, 1, 64)
        check_int("k_max", self.k_max, 1, 64)
        check_float("epsilon", self.epsilon, 0.0, 1.0)
        if self.draft_stage not in ("serial", "overlap"):
            raise ValueError(f"draft_stage was {self.draft_stage!r}; it must be serial or overlap")
        if self.verify not in ("rejection", "coupled"):
            raise ValueError(f"verify was {self.verify!r}; it must be rejection or coupled")

    @property
    def draw(self) -> str:
        """The way tokens are drawn that goes with the verification mode."""
        return "gumbel" if self.verify == "coupled" else "inverse_cdf"


@dataclass
class Chain:
    """Drafted tokens that the target verifies next, with the logits they were drawn from."""

    tokens: list[int] = field(default_factory=list)
    logits: torch.Tensor | None = None  # [m, V]
    cutoff: torch.Tensor | None = None  # [m]
    # The draft's logits for the token after the chain, where they are known already.
    next_logits: torch.Tensor | None = None  # [V]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass
class Branches:
    """Candidates at the branch point and what was drafted behind each of them."""

    candidates: list[int]
    tokens: torch.Tensor  # [steps, k]
    confidence: torch.Tensor  # [steps, k]
    logits: torch.Tensor  # [steps, k, V]
    cutoff: torch.Tensor | None  # [steps, k]

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def steps(self) -> int:
        """Tokens drafted behind each candidate."""
        return int(self.tokens.shape[0])


@dataclass(frozen=True)
class Verdict:
    """What the target decided: ``num_accepted`` chain tokens, then ``next_token``."""

    num_accepted: int
    next_token: int
    survivor: int  # branch whose candidate is next_token, -1: none


@dataclass(frozen=True)
class Committed:
    """Tokens a round appends to the output, and where each came from."""

    tokens: list[int]
    origins: list[str]  # chain, branch, recovered, bonus or plain


class Session:
    """State of one request; batch 1.

    Args:
        target, draft: the models; ``draft`` is None for policies that use the target alone.
        prompt: token ids, at least one.
        params, settings: what to generate and how to speculate.
        lanes: where the models run.
        hidden_layers: how many of the target's last layers a predictor wants to see.
        states: of target and draft, to be used instead of new ones.
    """

    def __init__(
        self,
        target: CausalLM,
        draft: CausalLM | None,
        prompt: Sequence[int],
        params: SamplingParams,
        settings: Settings,
        lanes: Lanes,
        *,
        hidden_layers: int = 0,
        states: tuple[DecoderState, DecoderState | None] | None = None,
    ) -> None:
        self.params, self.settings, self.lanes = params, settings, lanes
        self.tokens = list(prompt)
        self.total = len(prompt) + params.max_new_tokens
        self.stats = Stats(prompt_tokens=len(prompt))
        gamma, k_max = settings.gamma, settings.k_max
        self._draft: DecoderState | None
        if states is not None:
            self.target, self._draft = states
        else:
            self.target = target.new_state(self.total, gamma + 1)
            self._draft = None
            if draft is not None:
                self._draft = draft.new_state(self.total, max(gamma * k_max, gamma + 2))
        self._hidden_layers = hidden_layers
        self._hidden: torch.Tensor | None = None
        self._flip = 0
        self._judge = Judge(params, settings, target.device)
        if draft is not None:
            self.draft_sampler = Sampler(params, settings.draw, k_max, draft.device)
            # Two sets: a stage writes one while the chain of the stage before lives in the other.
            self._buffers = [
                DraftBuffers(gamma, k_max, draft.vocab_size, draft.dtype, draft.device)
                for _ in range(2)
            ]

    def prefill(self) -> None:
        """Process the prompt but for its last token, both models at the same time."""
        started = time.perf_counter()
        prompt = torch.tensor(self.tokens[:-1], dtype=torch.int64)
        if self._draft is None:
            self.target.prefill(prompt)
        else:
            draft = self._draft
            self.lanes.run(lambda: self.target.prefill(prompt), lambda: draft.prefill(prompt))
        self.stats.prefill_seconds = time.perf_counter() - started

    # ------------------------------------------------------------------ room
    @property
    def draft(self) -> DecoderState:
        """The draft's state."""
        assert self._draft is not None, "this policy needs a draft"
        return self._draft

    @property
    def has_draft(self) -> bool:
        """Whether there is one."""
        return self._draft is not None

    @property
    def length(self) -> int:
        """Committed tokens, the prompt included."""
        return len(self.tokens)

    def chain_room(self) -> int:
        """Longest chain worth verifying: the target always adds one token of its own."""
        return max(0, self.total - self.length - 1)

    # ------------------------------------------------------------------ draft
    def draft_chain(self, epsilon: float = 0.0) -> Chain:
        """Draft up to gamma tokens, stopping where the draft's confidence is below ``epsilon``."""
        out = self._next_buffers()
        room = min(self.settings.gamma, self.chain_room())
        steps = draft_steps(
            self.draft, self._missing(), 0, room, self.draft_sampler, self.length, epsilon, out
        )
        self.stats.draft_forwards += steps
        stopped = steps > 0 and bool(out.confidence_view[steps - 1, 0] < epsilon)
        count = steps - stopped
        self.stats.drafted += count
        return Chain(
            tokens=out.token_view[:count, 0].tolist(),
            logits=out.logits[:count, 0],
            cutoff=out.cutoff[:count, 0].contiguous() if self.params.has_cutoff else None,
            next_logits=out.logits[count, 0] if stopped else None,
        )

    def grow_branches(self, chain: Chain, *, stop_below: float = 0.0) -> Branches:
        """Draft behind the best candidates after ``chain``, all branches in one forward a step.

        Growing ends early where every branch has met a confidence below ``stop_below``.
        """
        branch_point = self.length + len(chain)
        logits = chain.next_logits
        logits = self._catch_up(chain) if logits is None else logits.unsqueeze(0)
        found = self._branch_topk(logits, branch_point)
        num_branches = int(found.num_branches[0])
        if num_branches == 0:
            raise ValueError(f"draft gave NaN logits for position {branch_point}")
        candidates = found.candidates[0, :num_branches].tolist()
        out = self._next_buffers()
        room = max(0, min(self.settings.gamma, self.total - branch_point - 2))
        steps = draft_steps(
            self.draft, candidates, num_branches, room, self.draft_sampler, branch_point + 1,
            stop_below, out,
        )  # fmt: skip
        self.stats.draft_forwards += steps
        return Branches(
            candidates=candidates,
            tokens=out.tokens[:steps, :num_branches],
            confidence=out.confidence[:steps, :num_branches],
            logits=out.logits[:steps, :num_branches],
            cutoff=out.cutoff[:steps, :num_branches] if self.params.has_cutoff else None,
        )

    def keep_branch(self, branches: Branches, idx: int, num_kept: int) -> Chain:
        """Turn the first ``num_kept`` tokens of branch ``idx`` into the next chain."""
        num_cached = min(num_kept + 1, branches.steps)
        self.draft.commit([step * len(branches) + idx for step in range(num_cached)])
        more = num_kept < branches.steps
        return Chain(
            tokens=branches.tokens[:num_kept, idx].tolist(),
            logits=branches.logits[:num_kept, idx],
            cutoff=None
            if branches.cutoff is None
            else branches.cutoff[:num_kept, idx].contiguous(),
            next_logits=branches.logits[num_kept, idx] if more else None,
        )

    def _missing(self, chain: Sequence[int] = ()) -> list[int]:
        """What the draft has not seen of ``X + chain``."""
        start, committed = self.draft.length, self.length
        if start >= committed:
            return list(chain[start - committed :])
        return [*self.tokens[start:], *chain]

    def _catch_up(self, chain: Chain) -> torch.Tensor:
        """Feed the draft what it has not seen of ``X + chain``; logits [1, V] after the last."""
        missing = self._missing(chain.tokens)
        self.stats.draft_forwards += 1
        logits = self.draft.forward(torch.tensor(missing, dtype=torch.int64)).logits[-1:]
        self.draft.commit(range(len(missing)))
        return logits

    def _next_buffers(self) -> DraftBuffers:
        self._flip ^= 1
        return self._buffers[self._flip]

    def _branch_topk(self, logits: torch.Tensor, position: int) -> ops.BranchResult:
        sampler = self.draft_sampler
        sampler.place(position)
        temperature, seed, at = sampler.row
        return ops.branch_topk(
            logits,
            self.settings.k_max,
            temperature,
            cutoff=sampler.cut(logits),
            seed=seed,
            position=at,
            draw=self.settings.draw,
        )

    # ------------------------------------------------------------------ target
    def target_forward(self, chain: Chain) -> torch.Tensor:
        """One forward over the last committed token and the chain: logits ``[m + 1, V]``."""
        started = time.perf_counter()
        tokens = torch.tensor([self.tokens[-1], *chain.tokens], dtype=torch.int64)
        output = self.target.forward(tokens, hidden_layers=self._hidden_layers)
        self._hidden = output.hidden
        if self._hidden_layers and output.hidden is None:
            raise ValueError(
                f"target gave no hidden states; the predictor needs those of its last "
                f"{self._hidden_layers} layers"
            )
        self.stats.target_forwards += 1
        self.stats.target_seconds += time.perf_counter() - started
        return output.logits

    def verify(
        self, target_logits: torch.Tensor, chain: Chain, branches: Branches | None = None
    ) -> Verdict:
        """Judge the chain and draw the target's next token (``ops.verify``)."""
        started = time.perf_counter()
        candidates = branches.candidates if branches is not None else []
        verdict = Verdict(*self._judge.judge(target_logits, chain, candidates, self.length))
        if verdict.next_token < 0:
            raise ValueError(
                f"target or draft gave NaN logits between positions {self.length} and "
                f"{self.length + len(chain)}"
            )
        if self._hidden is not None:
            self._hidden = self._hidden[verdict.num_accepted]
        self.stats.target_seconds += time.perf_counter() - started
        return verdict

    def target_features(self) -> torch.Tensor:
        """Hidden states ``[K, d]`` of the target at the newest verified position."""
        assert self._hidden is not None, "the session was opened without hidden_layers"
        return self._hidden

    # ------------------------------------------------------------------ commit
    def commit(self, chain: Chain, verdict: Verdict, *, plain: bool = False) -> Committed:
        """Append what was decided; both caches keep what is still true and forget the rest."""
        accepted, stats = verdict.num_accepted, self.stats
        self.target.commit(range(accepted + 1))
        valid = self.length + accepted
        if self._draft is not None and verdict.survivor < 0:
            self.draft.rollback(min(self.draft.length, valid))
        rejected = accepted < len(chain)
        stats.rounds += 1
        stats.accepted += accepted
        stats.accepted_chain += accepted
        stats.rejections += rejected
        stats.rolled_back += len(chain) - accepted
        if plain:
            last = "plain"
        elif rejected:
            last = "recovered"
        else:
            last = "branch" if verdict.survivor >= 0 else "bonus"
        committed = Committed(
            [*chain.tokens[:accepted], verdict.next_token], ["chain"] * accepted + [last]
        )
        self.tokens += committed.tokens
        stats.committed += len(committed.tokens)
        return committed
