"""How long a round of each arm takes, compared with the others, on a machine that is never still.

A machine's speed halves and doubles from one moment to the next: other work comes and goes, clocks
change. So arms are only ever compared with those that ran just before and after them: of two turns
that follow one another, the ratio of their rounds' seconds. Most of these ratios are near the truth
and some are far from it, which is what Student's t distribution says; its fit weighs each ratio by
how well it agrees with all others (iteratively reweighted least squares).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .arms import Arm
from .belief import Belief, Floats, Ints, Prior, belief, prior_covariance

PRIOR = Prior(family=0.35, smooth=0.03, own=0.03, slope=1.0, bend=0.2, width=0.15, drafts=0.25)
SPREAD, FREEDOM = 0.15, 3.0  # of the logarithm of a ratio: scale and degrees of freedom
TOLD = 0.5  # of a ratio's weight: the fit chooses the weights, and each turn is in two ratios
FITS = 2  # of the weights, which the last ones were nearly right for already
HICCUP = 3.0  # a round counts as at most so many times its turn's median
MOST = 1200  # ratios that are remembered
HALF_LIFE = 40000.0  # rounds after which a ratio counts half: machines change


class Turn(NamedTuple):
    """Some rounds of one arm; seconds a round."""

    arm: Arm
    seconds: float


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
        self._pairs = np.zeros(MOST, np.intp)  # of the last ratios, arms: an index into a matrix
        self._logs, self._times = np.zeros(MOST), np.zeros(MOST)  # of seconds; when it was
        self._num_ratios = 0
        self._belief = Belief(np.zeros(len(arms)), self._prior)

    def add(self, block: Sequence[Turn], now: float) -> None:
        """Turns that followed one another; ``now``: rounds until then."""
        before = self._num_ratios
        for turn, following in pairwise(block):
            if turn.arm != following.arm:
                slot, first = self._num_ratios % MOST, self._index[turn.arm]
                self._pairs[slot] = first * len(self._index) + self._index[following.arm]
                self._logs[slot] = math.log(following.seconds / turn.seconds)
                self._times[slot] = now
                self._num_ratios += 1
        if self._num_ratios > before:
            self._belief = self._fitted(now)

    def belief(self) -> Belief:
        """What is known."""
        return self._belief

    def _fitted(self, now: float) -> Belief:
        """All ratios, each with the weight that the others give it."""
        pairs, seen = self._pairs[: self._num_ratios], self._logs[: self._num_ratios]
        ages = now - self._times[: self._num_ratios]
        worth = TOLD * 0.5 ** (ages / HALF_LIFE) * (FREEDOM + 1.0)
        found = self._belief
        for _ in range(FITS):
            off = seen - (found.mean - found.mean[:, None]).ravel()[pairs]
            found = self._solved(pairs, seen, worth / (FREEDOM * SPREAD**2 + off**2))
        return found

    def _solved(self, pairs: Ints, seen: Floats, weight: Floats) -> Belief:
        """Least squares: precision is the Laplacian of the graph whose edges are the ratios."""
        weights, evidence = self._by_pair(pairs, weight), self._by_pair(pairs, weight * seen)
        weights += weights.T
        precision = np.diag(weights.sum(0)) - weights
        return belief(self._prior, precision, evidence.sum(0) - evidence.sum(1))

    def _by_pair(self, pairs: Ints, values: Floats) -> Floats:
        """Sums ``[first, second]``."""
        arms = len(self._prior)
        sums = np.bincount(pairs, values, arms * arms)
        return sums.reshape(arms, arms).astype(np.float64, copy=False)
