"""A session that decodes nothing: the verbs of ``specbranch.session.Session``, read from a trace.

The policies themselves run on it, unchanged: they ask for chains, branches and verdicts, and get
what the trace says the pair would have given. Counters are kept as the session keeps them, and a
clock is moved on by what each forward costs. Tokens of a chain that are off the text are not known;
they are numbers below 0, which no text has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from ..hedging import Hedge, HedgePoints
from ..predictor import Keep
from ..session import Branches, Chain, Committed, Settings, Verdict
from ..stats import Stats
from .clock import Clock
from .costs import Hardware
from .lookup import OFF_TEXT, Lookup

# In the place of logits: what they are does not matter, whether they are known does.
KNOWN = torch.empty(0)


@dataclass
class Grown:
    """What ``session.Growth`` is to a policy."""

    steps: int
    heads: Sequence[int] | Sequence[Hedge]
    confidence: NDArray[np.float64]  # [steps, k], true in the survivor's column
    survivor: Chain  # all that was drafted behind the survivor

    def __len__(self) -> int:
        return len(self.heads)

    def chain(self, idx: int, count: int) -> Chain:
        """The first ``count`` tokens behind the survivor."""
        kept, _ = self.survivor.split(count)
        kept.next_logits = KNOWN if count < self.steps else None
        return kept

    def find(self, head: Hedge) -> int:
        """The branch with this head, -1: none."""
        return list(self.heads).index(head) if head in self.heads else -1


class Replay:
    """The state of one replayed request; positions count from the end of the prompt.

    Args:
        lookup: the trace.
        settings: how the policy speculates.
        hardware: what its work costs.
        overlaps: whether the policy lets both models run at the same time.
    """

    def __init__(
        self, lookup: Lookup, settings: Settings, hardware: Hardware, *, overlaps: bool = False
    ) -> None:
        self._lookup, self.settings = lookup, settings
        self._join = (hardware.overlapped if overlaps else hardware.alone).join
        trace = lookup.trace
        self.total, self.end = trace.max_new_tokens, trace.end
        self.length = 0
        self.stats = Stats(prompt_tokens=len(trace.prompt))
        self.lanes = self.clock = Clock(hardware)
        self.tokens = list(trace.prompt)
        self._cached = -1  # length of the draft's prefix; the prompt's last token is not in it

    @property
    def is_done(self) -> bool:
        """Whether the request has ended."""
        return self.length >= self.end

    def chain_room(self) -> int:
        """Longest chain worth verifying: the target always adds one token of its own."""
        return max(0, self.total - self.length - 1)

    # ------------------------------------------------------------------ guesses and drafts
    def guess(self, tokens: Sequence[int]) -> Chain:
        """As ``Session.guess``."""
        chain = Chain(list(tokens[: min(self.settings.gamma, self.chain_room())]))
        self.stats.drafted += len(chain)
        return chain

    def draft_chain(self, epsilon: float = 0.0) -> Chain:
        """As ``Session.draft_chain``."""
        room = min(self.settings.gamma, self.chain_room())
        steps = self._steps(room, lambda idx: self._sure(idx) < epsilon)
        return self._drafted(0, steps, steps > 0 and self._sure(steps - 1) < epsilon)

    def draft_until(self, max_entropy: float) -> Chain:
        """As ``Session.draft_until``."""

        def unsure(idx: int) -> bool:
            return self._lookup.fact("entropy", self.length, idx, 0.0) > max_entropy

        steps = self._steps(min(self.settings.gamma, self.chain_room()), unsure)
        return self._drafted(0, steps, steps > 0 and unsure(steps - 1))

    def draft_ahead(self, chain: Chain) -> Chain:
        """As ``Session.draft_ahead``."""
        first = self.length + len(chain)
        room = min(self.settings.gamma, max(1, self.total - first - 1))
        return self._drafted(len(chain), room, False)

    def _sure(self, offset: int) -> float:
        return self._lookup.confidence(self.length, offset)

    @staticmethod
    def _steps(room: int, is_last: Callable[[int], bool]) -> int:
        """Steps up to and with the first that is the last, at most ``room``."""
        return next((idx + 1 for idx in range(room) if is_last(idx)), room)

    def _drafted(self, offset: int, steps: int, stopped: bool) -> Chain:
        """The chain of ``steps`` steps that begins ``offset`` behind the text."""
        count = steps - stopped
        self.stats.draft_forwards += steps
        self.stats.drafted += count
        if steps:
            costs = self.clock.costs
            unread = self.length + offset - self._cached
            self.clock.spend_draft(costs.stage + costs.draft(unread) + (steps - 1) * costs.draft(1))
            self._cached = self.length + offset + steps - 1
        tokens = self._lookup.drafted(self.length, offset, count)
        return Chain(tokens, next_logits=KNOWN if stopped else None)

    # ------------------------------------------------------------------ branches
    def grow_branches(self, chain: Chain, *, stop_below: float = 0.0) -> Branches:
        """As ``Session.grow_branches``.

        Growing ends early when *every* branch was unsure. The trace knows two of them: what the
        draft's own best candidate leads to, and what the survivor does. For each of the others
        stands in what was drafted behind a rejected token elsewhere in the trace: with more than
        one branch and ``stop_below`` above 0 the number of forwards is an estimate. What is kept,
        and with it all that is committed, is not concerned.
        """
        lookup, at = self._lookup, self.length + len(chain)
        if chain.next_logits is None:
            self._read(len(chain))
        width = lookup.num_candidates(self.settings.k_max, self.length, len(chain))
        survivor = self._survivor(chain, width)
        room = max(0, min(self.settings.gamma, self.total - at - 2))
        steps = self._growth(len(chain), survivor, width, room, stop_below)
        self._forwards(width, steps)
        candidates = [OFF_TEXT - 1 - idx for idx in range(width)]
        if survivor >= 0:
            candidates[survivor] = lookup.tokens[at]
        return cast(Branches, self._grown(steps, candidates, at + 1, survivor))

    def _survivor(self, chain: Chain, width: int) -> int:
        """The branch that will survive, -1: none."""
        if not self._is_text(chain.tokens):
            return -1
        rank: int = self._lookup.rank[self.length + len(chain)]
        return rank if rank < width else -1

    def _growth(
        self, num_verified: int, survivor: int, width: int, room: int, stop_below: float
    ) -> int:
        """Steps until all branches were unsure."""
        if stop_below == 0.0:
            return room
        point = self.length + num_verified
        lines = [(point + 1, 0)] if survivor >= 0 else []
        if survivor != 0:
            lines.append((self.length, num_verified + 1))
        lines += [(row, 1) for row in self._lookup.stand_ins(point, width - len(lines))]
        return max(self._unsure_after(*line, room, stop_below) for line in lines)

    def _unsure_after(self, at: int, offset: int, room: int, stop_below: float) -> int:
        lookup = self._lookup
        return self._steps(room, lambda idx: lookup.confidence(at, offset + idx) < stop_below)

    def _grown(
        self, steps: int, heads: Sequence[int] | Sequence[Hedge], behind: int, survivor: int
    ) -> Grown:
        """Branches whose survivor goes on at position ``behind``."""
        confidence = np.ones((steps, len(heads)))
        tokens: list[int] = []
        if survivor >= 0 and steps:
            confidence[:, survivor] = [self._lookup.confidence(behind, idx) for idx in range(steps)]
            tokens = self._lookup.drafted(behind, 0, steps)
        return Grown(steps, heads, confidence, Chain(tokens))

    def keep_branch(self, branches: Grown, idx: int, num_kept: int) -> Chain:
        """As ``Session.keep_branch``."""
        self._cached += min(num_kept + 1, branches.steps)
        return branches.chain(idx, num_kept)

    def _read(self, num_drafted: int) -> None:
        """The draft reads what it has not seen of text and chain."""
        unread = self.length + num_drafted - self._cached
        self.stats.draft_forwards += 1
        self.clock.spend_draft(self.clock.costs.read_time(unread))
        self._cached = self.length + num_drafted

    def _forwards(self, width: int, steps: int) -> None:
        """Growth of ``width`` branches."""
        self.stats.draft_forwards += steps
        if steps:
            costs = self.clock.costs
            self.clock.spend_draft(costs.stage + steps * costs.draft(width))

    # ------------------------------------------------------------------ fan-out
    def read_points(self, chain: Chain) -> HedgePoints:
        """As ``hedging.read_points``; what is read is not part of the draft's prefix yet."""
        cached = self._cached
        self._read(len(chain))
        self._cached = cached
        points = range(len(chain) + 1)
        confidence = [self._sure(offset) for offset in points]
        return HedgePoints(confidence, [self._candidates(chain, offset) for offset in points])

    def _candidates(self, chain: Chain, offset: int) -> list[int]:
        """The draft's best tokens for one place of the chain."""
        lookup, at = self._lookup, self.length
        count = lookup.num_candidates(6 * self.settings.k_max, at, offset)
        found = [OFF_TEXT - 1 - idx for idx in range(count)]
        if offset < len(chain):
            drafted = int(lookup.fact("drafted_rank", at, offset, 0))
            if drafted < count:
                found[drafted] = chain.tokens[offset]
        if self._is_text(chain.tokens[:offset]):
            rank = lookup.rank[at + offset]
            if 0 <= rank < count:
                found[rank] = lookup.tokens[at + offset]
        return found

    def grow_fan(self, chain: Chain, heads: Sequence[Hedge]) -> Grown:
        """As ``hedging.grow_fan``."""
        room = self.total - self.length - len(chain) - 2
        steps = max(0, min(self.settings.gamma, room))
        self._forwards(len(heads), steps)
        after = self._num_text(chain.tokens)
        hit = Hedge(after, self._lookup.tokens[self.length + after])
        survivor = list(heads).index(hit) if hit in heads else -1
        return self._grown(steps, heads, self.length + after + 1, survivor)

    def keep_read(self, num_accepted: int) -> None:
        """As ``hedging.keep_read``."""
        self._cached = self.length + num_accepted

    def forget_chain(self) -> None:
        """As ``hedging.forget_chain``."""
        self._cached = min(self._cached, self.length - 1)

    # ------------------------------------------------------------------ target
    def target_forward(self, chain: Chain) -> torch.Tensor:
        """As ``Session.target_forward``; the logits are of no use."""
        self.stats.target_forwards += 1
        self.clock.spend_target(self.clock.costs.target(len(chain) + 1))
        return KNOWN

    def verify(
        self, target_logits: torch.Tensor, chain: Chain, branches: Grown | None = None
    ) -> Verdict:
        """As ``Session.verify``: what is the text is accepted."""
        self.clock.spend_target(self.clock.costs.verify(len(chain) + 1))
        accepted = self._num_text(chain.tokens)
        token = self._lookup.tokens[self.length + accepted]
        survivor = -1
        if branches is not None and accepted == len(chain) and token in branches.heads:
            survivor = list(branches.heads).index(token)
        return Verdict(accepted, token, survivor)

    def verify_ahead(self, target_logits: torch.Tensor, chain: Chain) -> Verdict:
        """As ``Session.verify_ahead``."""
        self.clock.spend_target(self.clock.costs.verify(len(chain) + 1))
        accepted = self._num_text(chain.tokens)
        if accepted == len(chain):
            return Verdict(accepted, next_token=-1)
        return Verdict(accepted, self._lookup.tokens[self.length + accepted])

    def target_features(self) -> torch.Tensor:
        """What the predictor said at the newest verified position, for ``RecordedPredictor``."""
        return torch.tensor(self._lookup.keep[self.length])

    def _num_text(self, tokens: Sequence[int]) -> int:
        """How many leading ones are the text."""
        text = self._lookup.tokens
        for idx, token in enumerate(tokens):
            if token != text[self.length + idx]:
                return idx
        return len(tokens)

    def _is_text(self, tokens: Sequence[int]) -> bool:
        return self._num_text(tokens) == len(tokens)

    # ------------------------------------------------------------------ commit
    def commit(self, chain: Chain, verdict: Verdict, *, plain: bool = False) -> Committed:
        """As ``Session.commit``; ends the round."""
        accepted = verdict.num_accepted
        own = [verdict.next_token] if verdict.next_token >= 0 else []
        if own and verdict.survivor < 0:
            self._cached = min(self._cached, self.length + accepted)
        tokens = [*chain.tokens[:accepted], *own]
        self.stats.count_round(len(chain), accepted, len(tokens))
        self.length += len(tokens)
        self.tokens += tokens
        self.clock.now += self._join
        return Committed(tokens, [], len(chain))

    def finish(self) -> Stats:
        """The counters, with the times that the clock has measured."""
        self.stats.new_tokens = self.end
        self.stats.seconds = self.clock.now
        self.stats.target_seconds = self.clock.target_busy
        return self.stats


class RecordedPredictor:
    """Says again what H-RAD said when the trace was recorded."""

    hidden_layers = 1

    def predict(self, hidden: torch.Tensor, next_token: int) -> Keep:
        """``hidden``: the class."""
        return Keep(int(hidden))
