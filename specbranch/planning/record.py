"""Recording traces of a real pair, in the session's own verbs (see ``trace`` for what they hold).

A position costs one forward of the target and, where the token before it was accepted, one of the
draft: the rollout goes on by one token. Behind a rejection it is drawn anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import ops
from ..drafting import draft_steps
from ..lanes import Lanes, SerialLanes
from ..models.protocol import CausalLM, check_same_vocabulary
from ..predictor import Predictor
from ..progress import Progress
from ..sampling_params import SamplingParams, check_int
from ..session import Chain, Session, Settings
from .trace import LARGEST_K, Origin, Trace, Traces, run_lengths

ROLLOUT = 16  # tokens; makes the replay exact up to gamma 7, and possible up to 15


class _Facts(NamedTuple):
    """What a policy may know of a drafted position."""

    confidence: float
    entropy: float
    support: int
    drafted_rank: int


NO_FACTS = _Facts(1.0, 0.0, 1, 0)  # behind the end of the request


@dataclass(frozen=True)
class _Step:
    """A drafted token that is not judged yet."""

    chain: Chain
    facts: _Facts


def record_trace(
    target: CausalLM,
    draft: CausalLM,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    verify: str = "rejection",
    rollout: int = ROLLOUT,
    predictor: Predictor | None = None,
    lanes: Lanes | None = None,
) -> Trace:
    """Follow one request and keep what each policy would have met.

    Args:
        target, draft: the pair.
        prompt: token ids.
        params: of the request; stop strings are not looked at.
        verify: how drafted tokens are judged.
        rollout: tokens drafted ahead of each position. Policies with gamma below it can be
            replayed, those with ``2 * gamma`` below it exactly.
        predictor: H-RAD, whose classes are kept if it is given.
        lanes: where the models run; by default one after the other on all cores.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    check_int("rollout", rollout, 1, 64)
    check_same_vocabulary(target, draft)
    _check_prompt(prompt, params, target, draft)
    session = Session(
        target,
        draft,
        prompt,
        params,
        Settings(gamma=rollout, k_max=1, verify=verify),
        lanes or SerialLanes(),
        hidden_layers=0 if predictor is None else predictor.hidden_layers,
    )
    eos = frozenset() if params.ignore_eos else frozenset(target.eos_token_ids)
    return _Recorder(session, predictor, eos).run()


def record_traces(
    target: CausalLM,
    draft: CausalLM,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    verify: str = "rejection",
    rollout: int = ROLLOUT,
    predictor: Predictor | None = None,
    origin: Origin | None = None,
    lanes: Lanes | None = None,
) -> Traces:
    """``record_trace`` of each prompt; prompt i has the seed ``params.seed + i``.

    ``origin``: names of pair and prompts; the settings are filled in.
    """
    if not prompts:
        raise ValueError("prompts was empty; it must have at least one")
    for idx, prompt in enumerate(prompts):
        _check_prompt(prompt, params, target, draft, f"prompts[{idx}]: ")
    found = []
    with Progress("record", len(prompts)) as bar:
        for idx, prompt in enumerate(prompts):
            own = replace(params, seed=params.seed + idx)
            found.append(
                record_trace(
                    target, draft, prompt, own, verify=verify, rollout=rollout,
                    predictor=predictor, lanes=lanes,
                )
            )  # fmt: skip
            bar.step()
    about = {
        name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "min_p", "seed")
    }
    about |= {"verify": verify, "hrad": predictor is not None}
    return Traces(found, replace(origin or Origin(), **about))


def _check_prompt(
    prompt: Sequence[int],
    params: SamplingParams,
    target: CausalLM,
    draft: CausalLM,
    where: str = "",
) -> None:
    """Before anything is recorded; ``where``: which prompt, for the message."""
    if not prompt:
        raise ValueError(f"{where}prompt was empty; it must have at least one token")
    limit = min(target.max_seq_len, draft.max_seq_len)
    if len(prompt) + params.max_new_tokens > limit:
        raise ValueError(
            f"{where}max_new_tokens was {params.max_new_tokens} after a prompt of {len(prompt)} "
            f"tokens; together they must be at most {limit}"
        )


class _Recorder:
    """Drafts ahead of the text and commits one token after the other."""

    def __init__(self, session: Session, predictor: Predictor | None, eos: frozenset[int]) -> None:
        self.session, self.predictor, self.eos = session, predictor, eos
        self.rollout = session.settings.gamma
        self._by_noise = session.settings.verify == "coupled" and session.params.temperature > 0.0
        self._ahead: deque[_Step] = deque()
        self._rows: list[list[_Facts]] = []
        self._accepted: list[bool] = []
        self._rank: list[int] = []
        self._keep: list[int] = [-1]

    def run(self) -> Trace:
        """To the end of the request, and far enough behind it for any last round."""
        session = self.session
        session.prefill()
        prompt_length, end = session.length, session.params.max_new_tokens
        while session.length < min(session.total, prompt_length + end + self.rollout + 2):
            token = self._position()
            count = session.length - prompt_length
            if token in self.eos and count < end:
                end = count
        return self._trace(prompt_length, end)

    def _position(self) -> int:
        """Draft, judge and commit one token."""
        session = self.session
        self._extend()
        facts = [step.facts for step in self._ahead]
        self._rows.append(facts + [NO_FACTS] * (self.rollout - len(facts)))
        logits = session.target_forward(Chain())
        first = self._ahead.popleft().chain
        verdict = session.verify_ahead(logits, first)
        is_accepted = verdict.num_accepted == 1
        token = session.commit(first, verdict).tokens[0]
        if not is_accepted:
            self._ahead.clear()
        self._accepted.append(is_accepted)
        self._rank.append(self._rank_of(token, first, is_accepted))
        self._keep.append(self._class(token))
        return token

    def _extend(self) -> None:
        """Draft on until the rollout has its length, or reaches the end of the request."""
        session = self.session
        missing = min(self.rollout, session.total - session.length) - len(self._ahead)
        if missing <= 0:
            return
        unread = session.unread([step.chain.tokens[0] for step in self._ahead])
        first, out = session.length + len(self._ahead), session.next_buffers()
        draft_steps(session.draft, unread, 0, missing, session.draft_sampler, first, 0.0, out)
        logits = out.logits[:missing, 0].clone()
        cutoff = out.cutoff[:missing, 0].clone() if session.params.has_cutoff else None
        tokens = out.token_view[:missing, 0].tolist()
        drafted = Chain(tokens, logits, cutoff)
        for facts in self._facts(drafted):
            one, drafted = drafted.split(1)
            self._ahead.append(_Step(one, facts))

    def _facts(self, drafted: Chain) -> list[_Facts]:
        """What is known of each drafted token's row."""
        logits, cutoff = drafted.logits, drafted.cutoff
        assert logits is not None, "the chain was drafted, not made up"
        drawn = self.session.draft_sampler.draw_drafts(logits, cutoff, 0)
        lowest = torch.full((len(drafted), 1), -torch.inf) if cutoff is None else cutoff[:, None]
        lowest = lowest.to(logits.device)
        support = ((logits >= lowest) & (logits > -torch.inf)).sum(-1).tolist()
        ranks = [0] * len(drafted)
        if not self._by_noise:
            ranks = [
                _rank_by_logit(row, token)
                for row, token in zip(logits, drafted.tokens, strict=True)
            ]
        numbers = (drawn.max_probability.tolist(), drawn.entropy.tolist(), support, ranks)
        return [_Facts(*each) for each in zip(*numbers, strict=True)]

    def _rank_of(self, token: int, first: Chain, is_accepted: bool) -> int:
        """Of the committed token, as ``ops.branch_topk`` orders candidates at its position."""
        logits, cutoff = first.logits, first.cutoff
        assert logits is not None, "the chain was drafted, not made up"
        if self._by_noise:
            return 0 if is_accepted else self._rank_by_noise(token, logits, cutoff)
        row = logits[0]
        if row[token] == -torch.inf or (cutoff is not None and row[token] < cutoff[0]):
            return -1
        rank = _rank_by_logit(row, token)
        return rank if rank < LARGEST_K else -1

    def _rank_by_noise(self, token: int, logits: torch.Tensor, cutoff: torch.Tensor | None) -> int:
        """Draws with the same noise, each without what was drawn before."""
        params, left = self.session.params, logits.clone()
        position = self.session.length - 1
        for rank in range(min(LARGEST_K, left.shape[1])):
            drawn = ops.sample(
                left, params.temperature, params.seed, position, cutoff=cutoff, draw="gumbel"
            )
            best = int(drawn.token)
            if best == token:
                return rank
            if best < 0:  # nothing is left
                return -1
            left[0, best] = -torch.inf
        return -1

    def _class(self, token: int) -> int:
        """H-RAD's class behind the committed ``token``."""
        if self.predictor is None:
            return -1
        return int(self.predictor.predict(self.session.target_features(), token))

    def _trace(self, prompt_length: int, end: int) -> Trace:
        tokens = self.session.tokens
        columns = [
            np.asarray([[facts[idx] for facts in row] for row in self._rows])
            for idx in range(len(_Facts._fields))
        ]
        kinds: tuple[Any, ...] = (np.float32, np.float32, np.int32, np.int32)
        confidence, entropy, support, drafted_rank = (
            column.astype(kind) for column, kind in zip(columns, kinds, strict=True)
        )
        return Trace(
            prompt=tokens[:prompt_length],
            tokens=tokens[prompt_length:],
            accepted=run_lengths(self._accepted, self.rollout),
            rank=np.asarray(self._rank, np.int32),
            confidence=confidence,
            entropy=entropy,
            support=support,
            drafted_rank=drafted_rank,
            keep=np.asarray(self._keep[:-1], np.int32),
            max_new_tokens=self.session.params.max_new_tokens,
            end=end,
        )


def _rank_by_logit(row: torch.Tensor, token: int) -> int:
    """Tokens before this one: larger logits, and equal ones of a lower index."""
    value = row[token]
    return int((row > value).sum()) + int((row[:token] == value).sum())
