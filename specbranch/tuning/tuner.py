"""Chooses how to decode next from what decoding has cost and brought so far.

Tokens a round are learnt from everything that was decoded (``gain.py``), seconds a round only from
arms that take turns (``pace.py``): the machine's own speed changes more than arms differ. At first
all take turns: one or a few of each family, then all that may still be the best one, sweep by
sweep; what is learnt in a sweep may rule out arms before their turn. Later the best arm runs, and
the others are challengers: a few are drawn with the chance that they are the best one (Thompson,
Biometrika 25, 1933), and take turns with it, as long as what that costs stays a small share of all
time.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..session import Settings
from .arms import Arm, arms_of
from .belief import Belief, Floats
from .gain import Gain, Outcome
from .pace import HICCUP, Pace, Turn, turn_of

TURN, SHORT_TURN = 6, 4  # rounds, at least: of short ones, of long ones
COUNTED = 4  # rounds of a turn, at most
ENOUGH = 0.03  # seconds after which a turn need not be longer
WARM, MOST_WARM = 0.006, 8  # seconds, rounds: caches hold what was used before
WARM_AR, MOST_WARM_AR = 0.016, 20  # of ar, whose rounds get faster for so long behind a draft's
CLEAR = 0.15  # share of its time that ar is thought to lose, from which on 6 ms are enough
SWEEPS = 4  # at most, before the first choice
PLAUSIBLE = 1.0  # standard deviations that an arm may be behind and is still swept
SHORTEST = 8  # rounds to the next choice
LONGEST = 512  # rounds to the next choice
SHARE = 0.003  # of the time, for choosing
NEWS = 0.1  # change of the tokens a round that are expected of the running arm, at which to choose
LOOK = 128  # rounds, at most, after which it is told what became of them
PATIENCE = 16  # rounds that a change waits at most for a chain to end by itself
LOSS = 0.005  # share of the time that challengers may lose, in the long run
YOUTH = 6000.0  # rounds, after which it is still about twice that share
HOPE = 0.7  # of the standard deviation, by which arms are drawn better or worse than they seem
SPARE = 0.7  # of what challengers may lose: as long as less is lost, other families get a turn
CHALLENGERS = 4  # of one choice, at most
SEEN = 0.15  # of what challengers may lose, for each other family, whatever is drawn
BETTER = 0.01  # what another arm must promise to be changed to
WORTH = 0.01  # by which a challenger must be drawn better
SWITCH = 0.02  # share of a challenger's time that it is charged beside what is measured


@dataclass
class Stretch:
    """An arm, for how many rounds, and what it has brought."""

    arm: Arm
    rounds: int
    turn: int = TURN  # rounds that say how long its rounds take, and those before them
    behind: float = 0.0  # share of its time that it is thought to lose
    challenger: Arm | None = None  # whose trial this is, or follows: what it loses is charged to it
    is_trial: bool = True  # whether others run beside it, to be compared with
    promise: float | None = None  # logarithm of tokens a round; None: it ends when it ends
    done: int = 0
    odd: int = 0  # of these, at the beginning or the end of a request
    seconds: list[float] = field(default_factory=list)  # of rounds that count
    early: list[float] = field(default_factory=list)  # of the warm-up
    changing: float = 0.0  # seconds

    @property
    def warm_up(self) -> int:
        """The first rounds, which do not count. The first one with branches never has a chain, and
        the next one mostly has: an even number of those behind them is nearly like all others.
        """
        return max(2 if self.arm.k_max else 1, self.turn - COUNTED)

    @property
    def to_next_look(self) -> int:
        """Rounds, at least one: looking costs time, and slows down the rounds that follow."""
        return min(LOOK, max(1, self._most - self.done))

    @property
    def is_over(self) -> bool:
        """Whether all rounds are done."""
        return self.done >= self._most

    @property
    def _most(self) -> int:
        """Rounds; of a trial others stand in for some that tell nothing of it."""
        return self.rounds + self.is_trial * min(self.odd, self.rounds)

    def add(self, seconds: Sequence[float | None], seen: Sequence[Outcome]) -> int:
        """Rounds have ended, and took so many seconds each; None: not to be compared with others.

        Those that the end of a request cut do not count, nor those that only wait for a chain to
        end: rounds with a chain are not like all others.

        Returns:
            How many of them came too early, or too late, to count.
        """
        if self.is_over:
            self.done += len(seen)
            return len(seen)
        first = min(len(seen), max(0, self.warm_up - self.done))
        self.done += len(seen)
        for idx, (took, outcome) in enumerate(zip(seconds, seen, strict=True)):
            is_early = idx < first
            if took is None or outcome.is_cut:
                self.odd += not is_early
            else:
                (self.early if is_early else self.seconds).append(took)
        return first

    @property
    def can_wait(self) -> bool:
        """Whether it may go on for a while, until a chain ends by itself."""
        return self.done < self.rounds + min(PATIENCE, self.rounds)

    def turns(self) -> list[Turn]:
        """Its first and its last rounds, to be compared with those of the arms around it."""
        ends = [self.seconds[:COUNTED], self.seconds[COUNTED:][-COUNTED:]]
        return [turn_of(self.arm, end) for end in ends if end]

    @property
    def overhead(self) -> float:
        """Seconds that changing to it took, and that its first rounds were slower by.

        Slower than the next ones: a machine's speed changes.
        """
        usual = self.usual
        slower = sum(min(took, HICCUP * usual) - usual for took in self.early)
        return self.changing + max(0.0, slower)

    @property
    def usual(self) -> float:
        """Seconds of one of the first rounds that count, hiccups left out; 0 where none did."""
        turns = self.turns()
        return turns[0].seconds if turns else 0.0

    @property
    def a_round(self) -> float:
        """Seconds, 0 where none was timed."""
        return statistics.fmean(self.seconds) if self.seconds else 0.0


class Tuner:
    """Learns over all requests of an engine.

    Args:
        settings: ``gamma`` and ``k_max`` bound the arms'.
        clock: seconds.
    """

    def __init__(
        self, settings: Settings, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.settings, self._clock = settings, clock
        self.arms = arms_of(settings)
        self.rng = np.random.default_rng(0)
        self._gain, self._pace = Gain(self.arms, self.rng), Pace(self.arms)
        self.best = self.arms[0]
        self.rounds = dict.fromkeys(self.arms, 0)
        self._sweeps = 1  # before the one that runs; the first is of landmarks
        self._swept: set[Arm] = set()  # had a turn in the one that runs
        self._seconds = 0.0
        families = sorted({arm.family for arm in self.arms})
        self._spent = dict.fromkeys(families, 0.0)  # of these, on challengers
        self._choosing = 0.0  # seconds that the last choice took
        self._turns: list[Turn] = []  # that are not yet compared with the ones before them
        # What comes before the next choice, taken from its end.
        self._plan = [_turn(arm) for arm in _landmarks(self.arms)[::-1]]
        self.stretch = self._plan.pop()

    # ------------------------------------------------------------------ rounds
    def next_arm(self, *, has_chain: bool = False) -> Arm:
        """The arm of the next round; a change waits a little for ``has_chain`` to be over."""
        stretch = self.stretch
        if stretch.is_over and not (has_chain and stretch.can_wait):
            self._account(stretch)
            if self._plan:
                self.stretch = self._plan.pop()
            else:
                started = self._clock()
                self.stretch = self._choose(stretch)
                self._choosing = self._clock() - started
            turn = self.stretch.turn = self._rounds_of_a_turn(self.stretch, stretch)
            self.stretch.rounds = turn if self.stretch.is_trial else max(turn, self.stretch.rounds)
        return self.stretch.arm

    def observe(
        self,
        stretch: Stretch,
        seconds: Sequence[float | None],
        seen: Sequence[Outcome],
        *,
        changing: float = 0.0,
    ) -> None:
        """Rounds of a stretch have ended.

        Args:
            stretch: the one that ran when they began.
            seconds: that each took; None: it was slowed down, as a request had just begun.
            seen: what became of their chains.
            changing: seconds that changing to this arm from another one took.
        """
        if stretch is not self.stretch:  # another request of this engine has gone on to the next
            self._gain.observe(stretch.arm, seen, len(seen))
            return
        if stretch.is_trial or not stretch.done:  # later ones are of requests that begin
            stretch.changing += changing
        self._gain.observe(stretch.arm, seen, stretch.add(seconds, seen))
        self._heed(stretch)

    def _heed(self, stretch: Stretch) -> None:
        """Choose again soon where the text has changed, so that chains promise something else."""
        if stretch.promise is None or stretch.done < SHORTEST:
            return
        if abs(self._promise(stretch.arm) - stretch.promise) > NEWS:
            stretch.rounds = min(stretch.rounds, stretch.done)

    def _promise(self, arm: Arm) -> float:
        return math.log(self._gain.predict(arm))

    def _account(self, stretch: Stretch) -> None:
        """Keep what a stretch brought."""
        self._gain.forget(stretch.done)
        self.rounds[stretch.arm] += stretch.done
        seconds = stretch.done * stretch.a_round
        self._seconds += seconds + stretch.changing
        if stretch.challenger is not None:
            lost = stretch.behind * stretch.done * stretch.usual + stretch.overhead
            self._spent[stretch.challenger.family] += lost
        self._turns += stretch.turns()

    # ------------------------------------------------------------------ choosing
    def _choose(self, last: Stretch) -> Stretch:
        """What to do next."""
        self._pace.add(self._turns, sum(self.rounds.values()))
        self._turns = self._turns[-1:]  # the next one follows it
        speed, covariance = self.speeds()
        self._settle(speed)
        arm = self._next_of_sweep(speed, covariance) if self._sweeping else None
        if arm is not None:
            return _turn(arm)
        turns = self._challengers(speed, covariance, last)
        settled = Stretch(
            self.best,
            self._rounds_to_choose(last),
            challenger=turns[-1].challenger if turns else None,
            is_trial=False,
            promise=self._promise(self.best) if self.best.gamma else None,
        )
        self._plan = [settled, *turns[::-1]]
        return self._plan.pop()

    @property
    def _sweeping(self) -> bool:
        return self._sweeps < SWEEPS

    def _next_of_sweep(self, speed: Floats, covariance: Floats) -> Arm | None:
        """One of the arms that may be the best one by now; None: the sweeps are over."""
        plausible = self._plausible(speed, covariance)
        while len(plausible) > 1 and self._sweeping:
            left = [arm for arm in plausible if arm not in self._swept]
            if left:
                arm = left[int(self.rng.integers(len(left)))]
                self._swept.add(arm)
                return arm
            self._sweeps += 1
            self._swept.clear()
        self._sweeps = SWEEPS
        return None

    def _settle(self, speed: Floats) -> None:
        best = int(speed.argmax())
        if speed[best] > speed[self._best_index] + BETTER:
            self.best = self.arms[best]

    def _plausible(self, speed: Floats, covariance: Floats) -> list[Arm]:
        """Arms that may be the best one."""
        best = self._best_index
        spread = covariance.diagonal() + covariance[best, best] - 2.0 * covariance[best]
        reach = speed - speed[best] + PLAUSIBLE * np.sqrt(np.maximum(spread, 0.0))
        return [arm for arm, far in zip(self.arms, reach, strict=True) if far >= 0.0]

    def _challengers(self, speed: Floats, covariance: Floats, last: Stretch) -> list[Stretch]:
        """Turns of other arms, and of the best one between them; none most of the time."""
        allowed, spent = self._allowance(), dict(self._spent)
        if sum(spent.values()) > allowed:
            return []
        root = HOPE * np.linalg.cholesky(covariance + 1e-9 * np.eye(len(speed)))
        turns: list[Stretch] = []
        for _ in range(CHALLENGERS):
            drawn = speed + root @ self.rng.standard_normal(len(speed))
            arm = self._challenger(drawn, speed, spent, allowed)
            if arm is None:
                break
            ratio = math.exp(speed[self.arms.index(arm)] - speed[self._best_index])
            behind = SWITCH + max(0.0, 1.0 - ratio)
            trial = _turn(arm, behind, arm)
            turns += [trial, _turn(self.best, challenger=arm)]
            seconds = self._rounds_of_a_turn(trial, last) * self._expected_round(arm, last)
            spent[arm.family] += behind * seconds
            if sum(spent.values()) > allowed:
                break
        return turns[:-1]

    def _challenger(
        self, drawn: Floats, speed: Floats, spent: dict[str, float], allowed: float
    ) -> Arm | None:
        """Of speeds that were drawn the best one's, or one of a family that is hardly seen."""
        other, best = int(drawn.argmax()), self._best_index
        is_drawn = drawn[other] >= drawn[best] + WORTH
        # A belief that is wrong and sure must be put right, too.
        family = min((name for name in spent if name != self.best.family), key=spent.__getitem__)
        is_spare = sum(spent.values()) <= SPARE * allowed
        if spent[family] < SEEN * allowed or (not is_drawn and is_spare):
            return self.arms[self._best_of(family, speed)]
        return self.arms[other] if is_drawn else None

    def _best_of(self, family: str, speed: Floats) -> int:
        same = [idx for idx, arm in enumerate(self.arms) if arm.family == family]
        return max(same, key=lambda idx: float(speed[idx]))

    def _rounds_to_choose(self, last: Stretch) -> int:
        """After so many rounds another choice costs about its share.

        While ``ar`` runs nothing is seen of the text, so that there is nothing to choose before
        challengers may run again. (What they show is told at the choice behind their trials, which
        is planned while they may still run.)
        """
        if not last.a_round:
            return SHORTEST
        seconds = self._choosing / SHARE
        if not self.best.gamma:
            seconds = max(seconds, (sum(self._spent.values()) - self._allowance()) / LOSS)
        rounds = seconds / self._expected_round(self.best, last)
        return int(min(LONGEST, max(SHORTEST, rounds)))

    def _allowance(self) -> float:
        """Seconds that challengers may have lost; a larger share at first."""
        rounds = sum(self.rounds.values())
        return LOSS * self._seconds * (1.0 + YOUTH / (rounds + YOUTH / 8))

    def _rounds_of_a_turn(self, stretch: Stretch, before: Stretch) -> int:
        """Long rounds need no mean of many: what disturbs one of them is short beside it.

        Of an arm that is far behind the last few percent need not be known.
        """
        if not before.a_round:
            return TURN
        enough = min(TURN, max(SHORT_TURN, math.ceil(ENOUGH / before.a_round)))
        is_long = not stretch.arm.gamma and stretch.behind < CLEAR
        seconds, most = (WARM_AR, MOST_WARM_AR) if is_long else (WARM, MOST_WARM)
        warm = min(most, int(seconds / self._expected_round(stretch.arm, before)))
        return max(enough, warm + COUNTED)

    def _expected_round(self, arm: Arm, before: Stretch) -> float:
        """Seconds, by those of the stretch before."""
        pace = self._pace.belief().mean
        slower = pace[self.arms.index(arm)] - pace[self.arms.index(before.arm)]
        return before.a_round * math.exp(slower)

    @property
    def _best_index(self) -> int:
        return self.arms.index(self.best)

    # ------------------------------------------------------------------ what is known
    def speeds(self) -> tuple[Floats, Floats]:
        """Logarithms of tokens a second, up to a term that all have in common; and covariance."""
        tokens, seconds = self.beliefs()
        return tokens.mean - seconds.mean, tokens.covariance + seconds.covariance

    def beliefs(self) -> tuple[Belief, Belief]:
        """Logarithms of tokens a round, and of seconds a round up to a term in common, by arm."""
        return self._gain.belief(), self._pace.belief()


def _landmarks(arms: Sequence[Arm]) -> list[Arm]:
    """Of arms without branches the shortest, a middling and the longest; of others a middling."""
    found = []
    widest = max(arm.k_max for arm in arms)
    for family in dict.fromkeys(arm.family for arm in arms):
        same = [arm for arm in arms if arm.family == family and arm.k_max in (0, widest)]
        ends = set() if same[0].k_max else {0, len(same) - 1}
        found += [same[idx] for idx in sorted(ends | {len(same) // 2})]
    return found


def _turn(arm: Arm, behind: float = 0.0, challenger: Arm | None = None) -> Stretch:
    return Stretch(arm, TURN, behind=behind, challenger=challenger)
