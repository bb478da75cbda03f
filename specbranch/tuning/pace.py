"""How long a round of each arm takes compared with the others, on a machine that never stands still.

A machine's speed halves and doubles within seconds: other work comes and goes, clocks change. So
arms are only ever compared inside a block, in which they take turns of some rounds each: a block
has a pace of its own, of which nothing is asked, and an arm's turn tells how its rounds relate to
those of the block's other turns. That is a linear model with two factors, arm and block; with the
blocks' paces eliminated, what a block tells is the Laplacian of the graph of its turns. The same
serves for a block of one turn: it tells nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .arms import Arm
from .belief import Belief, Floats, Prior, belief, prior_covariance

PRIOR = Prior(family=1.5, smooth=0.1, own=0.02, slope=0.5, bend=0.15, width=0.15)
TURN, ROUND = 0.12, 0.15  # standard deviations of a turn's logarithm: of it all, of one round in it
HICCUP = 3.0  # a round counts as at most so many times its turn's median
DOUBT = 2.5  # standard deviations beyond which a turn counts for less


class Turn(NamedTuple):
    """Some rounds of one arm; seconds a round."""

    arm: Arm
    seconds: float
    rounds: int


def turn_of(arm: Arm, rounds: Sequence[float]) -> Turn:
    """Of the seconds of its rounds, hiccups left out."""
    most = HICCUP * statistics.median(rounds)
    return Turn(arm, statistics.fmean(min(each, most) for each in rounds), len(rounds))


class Pace:
    """Seconds a round, by arm, up to a factor that all have in common (logarithms).

    Args:
        arms: in the order that all arrays have.
    """

    def __init__(self, arms: Sequence[Arm]) -> None:
        self._index = {arm: idx for idx, arm in enumerate(arms)}
        self._prior = prior_covariance(arms, PRIOR)
        self._precision, self._evidence = np.zeros((len(arms), len(arms))), np.zeros(len(arms))

    def forget(self, keep: float) -> None:
        """What was seen counts for ``keep`` times as much from now on."""
        self._precision *= keep
        self._evidence *= keep

    def add(self, block: Sequence[Turn]) -> None:
        """Turns that followed one another."""
        if len({turn.arm for turn in block}) < 2:
            return
        at = np.array([self._index[turn.arm] for turn in block])
        seen = np.log([turn.seconds for turn in block])
        weight = 1.0 / np.array([TURN**2 + ROUND**2 / turn.rounds for turn in block])
        weight *= self._trust(at, seen, weight)
        share = weight / weight.sum()
        np.add.at(self._precision, (at, at), weight)
        np.subtract.at(self._precision, (at[:, None], at[None, :]), np.outer(weight, share))
        np.add.at(self._evidence, at, weight * (seen - share @ seen))

    def _trust(self, at: Floats, seen: Floats, weight: Floats) -> Floats:
        """Less for a turn that is far from all that is known: something else ran beside it."""
        mean, covariance = self.belief()
        off = seen - mean[at]
        off -= np.median(off)
        apart = np.abs(off) / np.sqrt(covariance.diagonal()[at] + 1.0 / weight)
        return np.minimum(1.0, DOUBT / np.maximum(apart, 1e-9)) ** 2

    def belief(self) -> Belief:
        """What is known."""
        return belief(self._prior, self._precision, self._evidence)
