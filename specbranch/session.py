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
from .drafting import DraftBuffers, Sampler, draft_steps, draft_until, nan_draft
from .judge import Judge
from .lanes import Lanes
from .models.protocol import CausalLM, DecoderState, ForwardOutput
from .sampling_params import SamplingParams, check_float, check_int
from .stats import Stats
from .timeline import DRAFT, TARGET, Round, Timeline


@dataclass(frozen=True)
class Settings:
    """How a policy speculates.

    Args:
        gamma: draft length, tokens drafted ahead in one stage.
        k_max: most branches grown at the branch point (``fanout``: at all points together;
            ``lookahead``: most n-grams verified).
        epsilon: confidence (the draft's max probability) below which it is not trusted
            (``adaedl``: the estimated acceptance, at first).
        draft_stage: after a rejection or a miss, ``"serial"`` drafts a chain while the target
            waits (the paper), ``"overlap"`` goes straight to a branch stage.
        verify: ``"rejection"`` sampling, or ``"coupled"`` Gumbel noise (same sequence as ``ar``).
        max_ngram: longest end of the text that ``ngram`` looks up.
        window: positions that ``lookahead`` guesses at in parallel.
    """

    gamma: int = 3
    k_max: int = 3
    epsilon: float = 0.1
    draft_stage: str = "overlap"
    verify: str = "rejection"
    max_ngram: int = 3
    window: int = 5

    def __post_init__(self) -> None:
        check_int("gamma", self.gamma, 1, 64)
        check_int("k_max", self.k_max, 1, 64)
        check_float("epsilon", self.epsilon, 0.0, 1.0)
        check_int("max_ngram", self.max_ngram, 1, 64)
        check_int("window", self.window, 1, 64)
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
    """Drafted tokens that the target verifies next, with the logits they were drawn from.

    Tokens without logits were not drawn at all, but looked up or otherwise guessed with no random
    number: the target accepts each with the probability that it gives it.
    """

    tokens: list[int] = field(default_factory=list)
    logits: torch.Tensor | None = None  # [m, V]
    cutoff: torch.Tensor | None = None  # [m]
    # The draft's logits for the token after the chain, where they are known already.
    next_logits: torch.Tensor | None = None  # [V]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_guess(self) -> bool:
        """Whether its tokens were guessed rather than drawn."""
        return bool(self.tokens) and self.logits is None

    def split(self, count: int) -> tuple[Chain, Chain]:
        """The first ``count`` tokens, and the others."""
        return self._part(slice(count)), self._part(slice(count, None))

    def _part(self, part: slice) -> Chain:
        return Chain(
            self.tokens[part],
            None if self.logits is None else self.logits[part],
            None if self.cutoff is None else self.cutoff[part].contiguous(),
        )

    def __add__(self, other: Chain) -> Chain:
        if not self.tokens:
            return other
        return Chain(
            self.tokens + other.tokens,
            _joined(self.logits, other.logits),
            _joined(self.cutoff, other.cutoff),
        )


def _joined(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    return None if first is None or second is None else torch.cat((first, second))


@dataclass(frozen=True)
class Guesses:
    """A tree of tokens that were guessed with no random number; parent -1: follows the prefix."""

    tokens: list[int]
    parents: list[int]

    def __len__(self) -> int:
        return len(self.tokens)

    def __add__(self, other: Guesses) -> Guesses:
        """Both trees behind the prefix; the nodes of ``other`` come last."""
        moved = [parent + len(self) if parent >= 0 else -1 for parent in other.parents]
        return Guesses(self.tokens + other.tokens, self.parents + moved)


@dataclass
class Growth:
    """What was drafted behind the heads of k branches."""

    tokens: torch.Tensor  # [steps, k]
    confidence: torch.Tensor  # [steps, k]
    logits: torch.Tensor  # [steps, k, V]
    cutoff: torch.Tensor | None  # [steps, k]

    @property
    def steps(self) -> int:
        """Tokens drafted behind each head."""
        return int(self.tokens.shape[0])

    def chain(self, idx: int, count: int) -> Chain:
        """The first ``count`` tokens behind head ``idx``."""
        return Chain(
            tokens=self.tokens[:count, idx].tolist(),
            logits=self.logits[:count, idx],
            cutoff=None if self.cutoff is None else self.cutoff[:count, idx].contiguous(),
            next_logits=self.logits[count, idx] if count < self.steps else None,
        )


@dataclass
class Branches(Growth):
    """Candidates at the branch point and what was drafted behind each of them."""

    candidates: list[int]

    def __len__(self) -> int:
        return len(self.candidates)


@dataclass(frozen=True)
class Verdict:
    """What the target decided: ``num_accepted`` chain tokens, then ``next_token``."""

    num_accepted: int
    next_token: int  # -1: the whole chain was accepted and the target was not asked what follows
    survivor: int = -1  # branch whose candidate is next_token, -1: none


@dataclass(frozen=True)
class Committed:
    """Tokens a round appends to the output, and where each came from."""

    tokens: list[int]
    origins: list[str]  # chain, branch, recovered, bonus or plain
    num_drafted: int  # of the chain, accepted or not
    survivor: int = -1  # as in Verdict


class Session:
    """State of one request; batch 1.

    Args:
        target, draft: the models; ``draft`` is None for policies that use the target alone.
        prompt: token ids, at least one.
        params, settings: what to generate and how to speculate.
        lanes: where the models run.
        hidden_layers: how many of the target's last layers a predictor wants to see.
        target_nodes: most nodes of one target forward; None: a chain of gamma, and the last token.
        states: of target and draft, for rounds on the device, which direct the draft.
        timeline: where to write what the lanes do; None: nowhere.
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
        target_nodes: int | None = None,
        states: tuple[DecoderState, DecoderState | None] | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        self.timeline = timeline
        self.params, self.settings, self.lanes = params, settings, lanes
        self.tokens = list(prompt)
        self.total = len(prompt) + params.max_new_tokens
        self.stats = Stats(prompt_tokens=len(prompt))
        nodes = settings.gamma + 1 if target_nodes is None else target_nodes
        self._draft_model, self._widest = draft, settings  # a policy may go on with narrower ones
        self._draft: DecoderState | None = None
        if states is not None:
            self.target, self._draft = states
        else:
            self.target = target.new_state(self.total, nodes)
        self._hidden_layers = hidden_layers
        self._hidden: torch.Tensor | None = None
        self._flip = 0
        rows = max(nodes, settings.gamma + 1)
        self._judge = Judge(params, settings, target.device, max_rows=rows)

    def _open_draft(self) -> DecoderState:
        """The draft's state, when it is first asked for: a policy that learns may never ask."""
        draft, gamma, k_max = self._draft_model, self._widest.gamma, self._widest.k_max
        assert draft is not None, "this policy needs a draft"
        rows = max(k_max, gamma + 1)
        self.draft_sampler = Sampler(self.params, self._widest.draw, rows, draft.device)
        # Two sets: a stage writes one while the chain of the stage before lives in the other.
        self._buffers = [
            DraftBuffers(gamma, k_max, draft.vocab_size, draft.dtype, draft.device)
            for _ in range(2)
        ]
        return draft.new_state(self.total, gamma * (k_max + 1) + 2)

    def prefill(self, *, draft: bool = True) -> None:
        """Process the prompt but for its last token, both models at the same time.

        Without ``draft`` that model reads it later (``catch_up``).
        """
        started = time.perf_counter()
        prompt = torch.tensor(self.tokens[:-1], dtype=torch.int64)
        if not draft or self._draft_model is None:
            self._prefill(TARGET, self.target, prompt)
        else:
            state = self.draft
            self.lanes.run(
                lambda: self._prefill(TARGET, self.target, prompt),
                lambda: self._prefill(DRAFT, state, prompt),
            )
        self.stats.prefill_seconds = time.perf_counter() - started

    def _prefill(self, lane: str, state: DecoderState, prompt: torch.Tensor) -> None:
        started = time.perf_counter()
        state.prefill(prompt)
        self.note(lane, "prefill", started, rows=len(prompt))

    def note(self, lane: str, work: str, started: float, *, rows: int, forwards: int = 1) -> None:
        """Write work that ends now to the timeline, if there is one."""
        if self.timeline is not None and forwards:
            self.timeline.add(lane, work, started, rows=rows, forwards=forwards)

    def catch_up(self) -> None:
        """Let a draft that has not been asked for a while read the text but for its last token."""
        missing = self.unread()[:-1]
        if missing:
            self._prefill(DRAFT, self.draft, torch.tensor(missing, dtype=torch.int64))

    # ------------------------------------------------------------------ room
    @property
    def draft(self) -> DecoderState:
        """The draft's state."""
        if self._draft is None:
            self._draft = self._open_draft()
        return self._draft

    @property
    def has_draft(self) -> bool:
        """Whether there is one."""
        return self._draft_model is not None

    @property
    def length(self) -> int:
        """Committed tokens, the prompt included."""
        return len(self.tokens)

    def chain_room(self) -> int:
        """Longest chain worth verifying: the target always adds one token of its own."""
        return max(0, self.total - self.length - 1)

    # ------------------------------------------------------------------ guesses and drafts
    def guess(self, tokens: Sequence[int]) -> Chain:
        """A chain of tokens that were found without a draft, as many as are worth verifying."""
        chain = Chain(list(tokens[: min(self.settings.gamma, self.chain_room())]))
        self.stats.drafted += len(chain)
        return chain

    def draft_chain(self, epsilon: float = 0.0) -> Chain:
        """Draft up to gamma tokens, stopping where the draft's confidence is below ``epsilon``."""
        started = time.perf_counter()
        room = min(self.settings.gamma, self.chain_room())
        out = self.next_buffers()
        steps = draft_steps(
            self.draft, self.unread(), 0, room, self.draft_sampler, self.length, epsilon, out
        )
        self.note(DRAFT, "chain", started, rows=1, forwards=steps)
        return self._drafted(
            out, steps, steps > 0 and bool(out.confidence_view[steps - 1, 0] < epsilon)
        )

    def draft_until(self, max_entropy: float) -> Chain:
        """Draft up to gamma tokens, stopping where the draft's entropy is above ``max_entropy``."""
        started = time.perf_counter()
        room = min(self.settings.gamma, self.chain_room())
        out = self.next_buffers()
        steps, stopped = draft_until(
            self.draft, self.unread(), room, self.draft_sampler, self.length, max_entropy, out
        )
        self.note(DRAFT, "chain", started, rows=1, forwards=steps)
        return self._drafted(out, steps, stopped)

    def draft_ahead(self, chain: Chain) -> Chain:
        """Draft up to gamma tokens, at least one, that follow ``chain``."""
        started = time.perf_counter()
        first = self.length + len(chain)
        room = min(self.settings.gamma, max(1, self.total - first - 1))
        out = self.next_buffers()
        steps = draft_steps(
            self.draft, self.unread(chain.tokens), 0, room, self.draft_sampler, first, 0.0, out
        )
        self.note(DRAFT, "chain", started, rows=1, forwards=steps)
        return self._drafted(out, steps)

    def _drafted(self, out: DraftBuffers, steps: int, stopped: bool = False) -> Chain:
        """The chain of ``steps`` steps; ``stopped``: the last one's token does not count."""
        self.stats.draft_forwards += steps
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
            raise nan_draft(branch_point)
        candidates = found.candidates[0, :num_branches].tolist()
        out = self.next_buffers()
        room = max(0, min(self.settings.gamma, self.total - branch_point - 2))
        started = time.perf_counter()
        steps = draft_steps(
            self.draft, candidates, num_branches, room, self.draft_sampler, branch_point + 1,
            stop_below, out,
        )  # fmt: skip
        self.note(DRAFT, "branches", started, rows=num_branches, forwards=steps)
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
        return branches.chain(idx, num_kept)

    def unread(self, chain: Sequence[int] = ()) -> list[int]:
        """What the draft has not seen of ``X + chain``."""
        start, committed = self.draft.length, self.length
        if start >= committed:
            return list(chain[start - committed :])
        return [*self.tokens[start:], *chain]

    def _catch_up(self, chain: Chain) -> torch.Tensor:
        """Feed the draft what it has not seen of ``X + chain``; logits [1, V] after the last."""
        started = time.perf_counter()
        missing = self.unread(chain.tokens)
        self.stats.draft_forwards += 1
        logits = self.draft.forward(torch.tensor(missing, dtype=torch.int64)).logits[-1:]
        self.draft.commit(range(len(missing)))
        self.note(DRAFT, "read", started, rows=len(missing))
        return logits

    def next_buffers(self) -> DraftBuffers:
        """Buffers for a drafting stage, not those of the stage before."""
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
        output = self._forward(chain.tokens, None, self._hidden_layers)
        self._hidden = output.hidden
        if self._hidden_layers and output.hidden is None:
            raise ValueError(
                f"target gave no hidden states; the predictor needs those of its last "
                f"{self._hidden_layers} layers"
            )
        return output.logits

    def target_forward_tree(self, nodes: Guesses) -> torch.Tensor:
        """One forward over the last committed token and a tree: logits ``[N + 1, V]``."""
        parents = [-1, *(parent + 1 for parent in nodes.parents)]
        return self._forward(nodes.tokens, parents).logits

    def _forward(
        self, tokens: Sequence[int], parents: Sequence[int] | None, hidden_layers: int = 0
    ) -> ForwardOutput:
        started = time.perf_counter()
        inputs = torch.tensor([self.tokens[-1], *tokens], dtype=torch.int64)
        output = self.target.forward(inputs, parents, hidden_layers=hidden_layers)
        self.stats.target_forwards += 1
        self.stats.target_seconds += time.perf_counter() - started
        self.note(TARGET, "forward", started, rows=len(inputs))
        return output

    def verify(
        self, target_logits: torch.Tensor, chain: Chain, branches: Branches | None = None
    ) -> Verdict:
        """Judge the chain and draw the target's next token (``ops.verify``)."""
        started = time.perf_counter()
        candidates = branches.candidates if branches is not None else []
        verdict = Verdict(*self._judge.judge(target_logits, chain, candidates, self.length))
        self._check_verdict(verdict, len(chain))
        if self._hidden is not None:
            self._hidden = self._hidden[: verdict.num_accepted + 1][-1]
        self.stats.target_seconds += time.perf_counter() - started
        self.note(TARGET, "verify", started, rows=len(target_logits))
        return verdict

    def verify_ahead(self, target_logits: torch.Tensor, chain: Chain) -> Verdict:
        """Judge a chain whose last token the target has not read: ``[m, V]`` for m tokens.

        Where all of it is accepted there is no row to draw a bonus token from, and none is drawn.
        """
        # ops.verify wants a row behind the chain; what it draws from this one is not used.
        rows = torch.cat((target_logits, target_logits[-1:]))
        verdict = self.verify(rows, chain)
        if verdict.num_accepted < len(chain):
            return verdict
        return Verdict(verdict.num_accepted, next_token=-1)

    def match(self, target_logits: torch.Tensor, guesses: Guesses) -> tuple[list[int], int]:
        """Accepted nodes of a tree from the root down, then the target's token after them."""
        started = time.perf_counter()
        path, token = self._judge.match(target_logits, guesses.tokens, guesses.parents, self.length)
        self._check_verdict(Verdict(len(path), token), len(guesses))
        self.stats.target_seconds += time.perf_counter() - started
        self.note(TARGET, "verify", started, rows=len(target_logits))
        return path, token

    def _check_verdict(self, verdict: Verdict, length: int) -> None:
        if verdict.next_token < 0:
            raise ValueError(
                f"target or draft gave NaN logits between positions {self.length} and "
                f"{self.length + length}"
            )

    def target_features(self) -> torch.Tensor:
        """Hidden states ``[K, d]`` of the target at the newest verified position."""
        assert self._hidden is not None, "the session was opened without hidden_layers"
        return self._hidden

    # ------------------------------------------------------------------ commit
    def commit(
        self,
        chain: Chain,
        verdict: Verdict,
        *,
        plain: bool = False,
        path: Sequence[int] | None = None,
    ) -> Committed:
        """Append what was decided; both caches keep what is still true and forget the rest.

        ``path``: the nodes of the accepted tokens, where the target read a tree.
        """
        accepted = verdict.num_accepted
        own = [verdict.next_token] if verdict.next_token >= 0 else []
        nodes = range(accepted) if path is None else path
        # The last committed token is not in the target's cache yet.
        self.target.commit([0, *(node + 1 for node in nodes)][: accepted + len(own)])
        valid = self.length + accepted
        if self._draft is not None and own and verdict.survivor < 0 and not plain:
            self.draft.rollback(min(self.draft.length, valid))
        if plain:
            last = "plain"
        elif verdict.survivor >= 0:
            last = "branch"
        else:
            last = "recovered" if accepted < len(chain) else "bonus"
        committed = Committed(
            [*chain.tokens[:accepted], *own],
            ["chain"] * accepted + [last] * len(own),
            len(chain),
            verdict.survivor,
        )
        if self.timeline is not None:
            self.timeline.rounds.append(
                Round(self.length, len(chain), accepted, len(committed.tokens), last)
            )
        self.tokens += committed.tokens
        self.stats.count_round(len(chain), accepted, len(committed.tokens))
        return committed
