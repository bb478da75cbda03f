"""Chooses how to decode next from what decoding has cost and brought so far.

An arm is a policy with its gamma and k. Its speed is predicted, not only tried: tokens a round
from the acceptance by position, seconds a round from the cost of its forwards; both are shared by
all arms, so that running one of them says much about the others. What the prediction misses is
corrected by what the arm's family brought when it ran. Arms that might be better than the best one
are tried now and then, for a bounded share of the time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..session import Settings
from .acceptance import Acceptance, Rate
from .costs import Costs

TRIAL = 8  # rounds
FIRST_TRIALS = 16  # rounds of each family, before any choice
LONGEST = 256  # rounds to the next choice
SHARE = 0.004  # of the time, for choosing
SAMPLED = 8  # of so many rounds of a settled arm, one is looked at in detail
SETTLED = 32  # rounds of a family after which its predictions should be right
PATIENCE = 16  # rounds that a change waits for a chain to end by itself
EXPLORE = 0.015  # share of the time, in the long run
YOUTH = 4000.0  # rounds, by about which that share is reached
HOPE = 0.4  # how much better an arm may be than its prediction, at first
BETTER = 1.01  # what another arm must promise to be changed to
GAMMAS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64)
HOPE_TOKENS = 60.0  # of an arm, after which less is hoped for
TRUSTED = 400.0  # tokens that a prediction is worth, against what came true
FORGET = 0.5 ** (1 / 20000)  # by token: what was seen of an arm counts half after 20,000


@dataclass(frozen=True)
class Arm:
    """One way to decode; ``ar`` has gamma 0."""

    policy: str
    gamma: int = 0
    k_max: int = 0
    draft_stage: str = "overlap"

    @property
    def family(self) -> str:
        """Arms whose predictions are wrong in the same way."""
        return f"{self.policy} {self.draft_stage}" if self.k_max else self.policy

    @property
    def kind(self) -> tuple[str, int]:
        """Arms that need not be tried one by one: they differ in gamma only."""
        return self.family, self.k_max

    def settings(self, given: Settings) -> Settings:
        """``given`` with what this arm decides."""
        if not self.gamma:
            return given
        changed = replace(given, gamma=self.gamma)
        if not self.k_max:
            return changed
        return replace(changed, k_max=self.k_max, draft_stage=self.draft_stage)


@dataclass
class Stretch:
    """An arm, and for how many rounds; and what it has brought."""

    arm: Arm
    rounds: int
    done: int = 0  # rounds
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Observation:
    """One round of an arm. Seconds are of one forward each; None: there was none.

    ``is_short``: the end of the request was near and cut it. ``hit``: whether the token at the
    branch point had a branch; None: the point was not reached. ``num_kept``: how much of a branch
    that was hit is the next chain; None: none was.
    """

    seconds: float
    num_drafted: int
    num_accepted: int
    forward: float
    verify: float = 0.0
    chain_step: float | None = None
    num_chain_steps: int = 0
    branch_step: float | None = None
    num_branch_steps: int = 0
    read: float | None = None
    hit: bool | None = None
    num_kept: int | None = None
    is_short: bool = False


class Tuner:
    """Learns over all requests of an engine.

    Args:
        settings: ``gamma`` and ``k_max`` bound the arms'.
        parallel: whether both models run at the same time where a policy lets them.
        clock: seconds.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        parallel: bool,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.settings, self.parallel, self._clock = settings, parallel, clock
        self.arms = list(_arms(settings))
        self._costs = Costs()
        shared = Rate()
        self._acceptance = {
            policy: Acceptance(settings.gamma, shared) for policy in ("sps", "specbranch")
        }
        self._grown = Rate(1.0)  # steps of growing, of those that there was room for
        families = {arm.family for arm in self.arms}
        self._rounds = dict.fromkeys(families, 0)
        # Tokens over those predicted for the time that it took; tokens seen, which are forgotten.
        self._yield = {family: Rate(1.0, TRUSTED) for family in families}
        self._seen = dict.fromkeys(families, 0.0)
        self._seconds = self._explored = 0.0
        self.best = self.arms[0]
        self._choosing = 0.0  # seconds that the last choice took
        self.stretch = self.choose()

    # ------------------------------------------------------------------ choosing
    def next_arm(self, *, has_chain: bool = False) -> Arm:
        """The arm of the next round; a change waits a little for ``has_chain`` to be over."""
        stretch = self.stretch
        if stretch.done >= stretch.rounds + (PATIENCE if has_chain else 0):
            started = self._clock()
            self._account(stretch)
            self.stretch = self.choose(self._rounds_to_choose())
            self._choosing = self._clock() - started
        return self.stretch.arm

    def _rounds_to_choose(self) -> int:
        """After so many rounds another choice costs no more than its share."""
        a_round = self.stretch.seconds / self.stretch.done
        rounds = self._choosing / (SHARE * a_round) if a_round else 0.0
        return int(min(LONGEST, max(TRIAL, rounds)))

    def choose(self, rounds: int = TRIAL) -> Stretch:
        """What to do next; for ``rounds`` rounds, or for fewer if it is to be tried only."""
        values = {arm: self.value(arm) for arm in self.arms}
        for arm in self.arms:
            if self._rounds[arm.family] < FIRST_TRIALS:
                same = (each for each in self.arms if each.family == arm.family)
                return Stretch(max(same, key=values.__getitem__), TRIAL)
        best = max(self.arms, key=values.__getitem__)
        if values[best] > BETTER * values[self.best]:
            self.best = best
        if self._explored < self._allowance():
            hopes = {arm: self.value(arm, 1.0) * (1.0 + self._hope(arm)) for arm in self.arms}
            others = [arm for arm in self.arms if arm.kind != self.best.kind]
            other = max(others, key=hopes.__getitem__)
            if hopes[other] > values[self.best]:
                return Stretch(other, TRIAL)
        return Stretch(self.best, rounds)

    def _allowance(self) -> float:
        """Seconds that exploring may have taken; a larger share at first."""
        rounds = sum(self._rounds.values())
        return EXPLORE * self._seconds * (1.0 + YOUTH / (rounds + YOUTH / 8))

    def _hope(self, arm: Arm) -> float:
        return HOPE / math.sqrt(1.0 + self._seen[arm.family] / HOPE_TOKENS)

    # ------------------------------------------------------------------ predicting
    def value(self, arm: Arm, hope: float = 0.0) -> float:
        """Predicted tokens a second; 0 where nothing is known yet."""
        tokens, seconds = self.predict(arm, hope)
        return self._yield[arm.family].value * tokens / seconds if seconds else 0.0

    def predict(self, arm: Arm, hope: float = 0.0) -> tuple[float, float]:
        """Tokens and seconds of a round, before the correction."""
        if not arm.gamma:
            return 1.0, self._target(1, False) + self._costs("rest ar", 1)
        if not arm.k_max:
            return self._predict_sps(arm.gamma)
        return self._predict_specbranch(arm, hope)

    def _predict_sps(self, gamma: int) -> tuple[float, float]:
        tokens = sum(self._acceptance["sps"].survival(gamma))
        seconds = gamma * self._costs("chain", 1) + self._target(gamma + 1, False)
        return tokens, seconds + self._costs("rest sps", 1)

    def _predict_specbranch(self, arm: Arm, hope: float) -> tuple[float, float]:
        """Over the stationary distribution of the chain's length.

        A hit leads to a chain as long as confidence lets it be, anything else to an empty one
        (overlap) or one that the draft stage makes first (serial).
        """
        acceptance, gamma = self._acceptance["specbranch"], arm.gamma
        survival, kept = acceptance.survival(gamma), acceptance.kept(gamma)
        hit = acceptance.hit_rate(arm.k_max, hope)
        whole = sum(part * alive for part, alive in zip(kept, survival, strict=True))
        serial = arm.draft_stage == "serial"
        hits = hit * whole if serial else hit / (1.0 - hit * whole + hit)
        share = kept if serial else [hits * part for part in kept]
        if not serial:
            share[0] += 1.0 - hits
        tokens = seconds = expected = 0.0
        for length, part in enumerate(share):
            expected += survival[length]
            tokens += part * expected
            seconds += part * self._branch_stage(length, arm)
        if serial:
            steps = sum(length * part for length, part in enumerate(kept))
            seconds += (1.0 - hits) * steps * self._costs("chain", 1)
        return tokens, seconds + self._costs("rest specbranch", 1)

    def _branch_stage(self, length: int, arm: Arm) -> float:
        """Seconds of both models, on their lanes or one after the other."""
        target = self._target(length + 1, self.parallel)
        kind = "branches" if self._costs.knows("branches") else "chain"
        steps = arm.gamma * self._grown.value
        draft = self._costs("read", 1) + steps * self._costs(kind, arm.k_max)
        return max(target, draft) if self.parallel else target + draft

    def _target(self, rows: int, beside: bool) -> float:
        """A forward, alone or beside the draft's, and the verdict on it."""
        kind = "beside" if beside and self._costs.knows("beside") else "forward"
        return self._costs(kind, rows) + self._costs("verify", rows)

    # ------------------------------------------------------------------ learning
    def observe(self, arm: Arm, seen: Observation) -> None:
        """Take what a round of ``arm`` cost and brought, in detail; some rounds will do."""
        self._learn_costs(arm, seen)
        if arm.gamma:
            self._learn_acceptance(arm, seen)

    @property
    def is_curious(self) -> bool:
        """Whether the next round should be observed."""
        return self.stretch.rounds <= TRIAL or self.stretch.done % SAMPLED == 0

    def count(self, tokens: int, seconds: float) -> None:
        """A round has ended, observed or not."""
        stretch = self.stretch
        stretch.done += 1
        stretch.tokens += tokens
        stretch.seconds += seconds

    def _account(self, stretch: Stretch) -> None:
        """Compare what a stretch brought with what it promised."""
        family = stretch.arm.family
        if self._rounds[family] >= SETTLED:  # before that the first guesses would be blamed
            tokens, seconds = self.predict(stretch.arm)
            self._yield[family].add(stretch.tokens, stretch.seconds * tokens / seconds)
        self._rounds[family] += stretch.done
        self._seconds += stretch.seconds
        if stretch.arm.kind != self.best.kind:
            self._explored += stretch.seconds
        forget = FORGET**stretch.tokens
        self._seen = {each: count * forget for each, count in self._seen.items()}
        self._seen[family] += stretch.tokens

    def _learn_costs(self, arm: Arm, seen: Observation) -> None:
        rows, costs = seen.num_drafted + 1, self._costs
        beside = bool(arm.k_max) and self.parallel
        costs.observe("beside" if beside else "forward", rows, seen.forward)
        costs.observe("verify", rows, seen.verify, tells_speed=False)
        if seen.chain_step is not None:
            costs.observe("chain", 1, seen.chain_step)
        if seen.read is not None:
            costs.observe("read", 1, seen.read)
        if seen.branch_step is not None:
            costs.observe("branches", arm.k_max, seen.branch_step)
        rest = max(0.0, seen.seconds - _worked(seen, beside))
        costs.observe(f"rest {arm.policy}", 1, rest, tells_speed=False)

    def _learn_acceptance(self, arm: Arm, seen: Observation) -> None:
        acceptance = self._acceptance[arm.policy]
        acceptance.add(seen.num_drafted, seen.num_accepted)
        if seen.hit is not None:
            acceptance.add_hit(arm.k_max, seen.hit)
        if not arm.k_max or seen.is_short:
            return
        if seen.num_kept is not None:
            acceptance.confident.add(seen.num_kept, seen.num_kept + (seen.num_kept < arm.gamma))
        if seen.num_branch_steps:
            self._grown.add(seen.num_branch_steps, arm.gamma)


def _worked(seen: Observation, beside: bool) -> float:
    """Seconds of a round that its forwards and its verdict explain."""
    growth = (seen.read or 0.0) + seen.num_branch_steps * (seen.branch_step or 0.0)
    both = max(seen.forward, growth) if beside else seen.forward + growth
    return both + seen.verify + seen.num_chain_steps * (seen.chain_step or 0.0)


def _arms(settings: Settings) -> Iterator[Arm]:
    gammas = [gamma for gamma in GAMMAS if gamma < settings.gamma] + [settings.gamma]
    widths = sorted({1, 2, 4, settings.k_max} & set(range(1, settings.k_max + 1)))
    yield Arm("ar")
    for gamma in gammas:
        yield Arm("sps", gamma)
    for stage in ("overlap", "serial"):
        for gamma in gammas:
            for k_max in widths:
                yield Arm("specbranch", gamma, k_max, stage)
