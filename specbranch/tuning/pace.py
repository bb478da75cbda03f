"""How long a round of each arm takes, compared with the others, on a machine that is never still.

A machine's speed halves and doubles from one moment to the next: other work comes and goes, clocks
change. So arms are only ever compared with those that ran just before and after them: of two turns
that follow one another, the ratio of their rounds' seconds. Most of these ratios are near the truth
and some are far from it, which is what Student's t distribution says; its fit weighs each ratio by
how well it agrees with all others (iteratively reweighted least squares).
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .arms import Arm
from .belief import Belief, Floats, Ints, Prior, belief, prior_covariance

PRIOR = Prior(family=0.7, smooth=0.03, own=0.03, slope=1.0, bend=0.4, width=0.15, drafts=0.25)
SPREAD, FREEDOM = 0.13, 3.0  # of the logarithm of a ratio: scale and degrees of freedom
FITS = 6  # of the weights
HICCUP = 3.0  # a round counts as at most so many times its turn's median
MOST = 1200  # ratios that are remembered
HALF_LIFE = 40000.0  # rounds after which a ratio counts half: machines change


class Turn(NamedTuple):
    """Some rounds of one arm; seconds a round."""

    arm: Arm
    seconds: float


class Ratio(NamedTuple):
    """Of two turns that followed one another: arms, logarithm of seconds, when it was."""

    first: int
    second: int
    log: float
    at: float


def turn_of(arm: Arm, rounds: Sequence[float]) -> Turn:
    """Of the seconds of its rounds, hiccups left out."""
    most = HICCUP * statistics.median(rounds)
    return Turn(arm, statistics.fmean(min(each, most) for each in rounds))


class Pace:
    """Seconds a round, by arm, up to a factor that all have in common (logarithms).

    Args:
        arms: in the order that all arrays have.
    """

    def __init__(self, arms: Sequence[Arm]) -> None:
        self._index = {arm: idx for idx, arm in enumerate(arms)}
        self._prior = prior_covariance(arms, PRIOR)
        self._ratios: deque[Ratio] = deque(maxlen=MOST)
        self._belief = Belief(np.zeros(len(arms)), self._prior)

    def add(self, block: Sequence[Turn], now: float) -> None:
        """Turns that followed one another; ``now``: rounds until then."""
        found = []
        for turn, following in pairwise(block):
            if turn.arm != following.arm:
                log = float(np.log(following.seconds / turn.seconds))
                found.append(Ratio(self._index[turn.arm], self._index[following.arm], log, now))
        if found:
            self._ratios.extend(found)
            self._belief = self._fitted(now)

    def belief(self) -> Belief:
        """What is known."""
        return self._belief

    def _fitted(self, now: float) -> Belief:
        """All ratios, each with the weight that the others give it."""
        first = np.array([ratio.first for ratio in self._ratios])
        second = np.array([ratio.second for ratio in self._ratios])
        seen = np.array([ratio.log for ratio in self._ratios])
        ages = now - np.array([ratio.at for ratio in self._ratios])
        worth = 0.5 ** (ages / HALF_LIFE) * (FREEDOM + 1.0)
        off = np.zeros(len(seen))
        found = self._belief
        for _ in range(FITS):
            weight = worth / (FREEDOM * SPREAD**2 + off**2)
            found = self._solved(first, second, seen, weight)
            off = seen - (found.mean[second] - found.mean[first])
        return found

    def _solved(self, first: Ints, second: Ints, seen: Floats, weight: Floats) -> Belief:
        """Least squares: precision is the Laplacian of the graph whose edges are the ratios."""
        precision, evidence = np.zeros_like(self._prior), np.zeros(len(self._prior))
        for arms in (first, second):
            np.add.at(precision, (arms, arms), weight)
        for pair in ((first, second), (second, first)):
            np.subtract.at(precision, pair, weight)
        np.add.at(evidence, second, weight * seen)
        np.subtract.at(evidence, first, weight * seen)
        return belief(self._prior, precision, evidence)
