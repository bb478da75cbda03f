"""How many tokens a round of each arm brings.

Of ``sps`` acceptance tells (``acceptance.py``). Of ``specbranch`` it tells what ``sps`` would bring
with the same gamma; the rounds that this would have taken over those it took, on the same text, is
a ratio that is learnt: it changes little where tokens a round double or halve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .acceptance import Acceptance, Guesses
from .arms import Arm
from .belief import Belief, Prior, belief, prior_covariance

IDLE = 1.5  # tokens of the text: as much older a round without a chain makes what is known of it
PRIOR = Prior(family=0.2, smooth=0.05, own=0.02, bend=0.2)  # of the ratio's logarithm
ROUND = 0.15  # variance of the ratio of one round
FIRST = 1.0  # rounds that a ratio of 1 counts as: of few rounds it may be 0
DOUBT = 0.6  # variance that one guess leaves, by gamma: neighbours are of one text, texts differ
HALF_LIFE = 6000.0  # rounds after which a ratio counts half


class Outcome(NamedTuple):
    """What became of one round's chain.

    ``is_right``: whether the draft's best guess behind a chain that was accepted is what came
    there; None: it was not asked for. ``is_cut``: the end of the request left no room for what the
    arm would have drafted.
    """

    num_drafted: int
    num_accepted: int
    is_right: bool | None = None
    is_cut: bool = False

    @property
    def guesses(self) -> Guesses:
        """What the round says of the draft's."""
        is_right = False if self.num_accepted < self.num_drafted else self.is_right
        return Guesses(self.num_accepted, is_right, self.is_cut)


class Gain:
    """Tokens a round, by arm (logarithms).

    Args:
        arms: in the order that all arrays have.
        rng: draws what is not known of a text.
    """

    def __init__(self, arms: Sequence[Arm], rng: np.random.Generator) -> None:
        self._index = {arm: idx for idx, arm in enumerate(arms)}
        self._gammas, self._which = np.unique([arm.gamma for arm in arms], return_inverse=True)
        self._acceptance = Acceptance(rng)
        branching = np.array([arm.k_max > 0 for arm in arms])  # of others acceptance says all
        self._prior = np.outer(branching, branching) * prior_covariance(arms, PRIOR)
        # An acceptance of few guesses is wrong for all arms that draft, and for none that does not.
        self._hangs = np.sqrt([DOUBT * arm.gamma for arm in arms])
        self._wanted = np.zeros(len(arms))  # rounds that sps would have taken
        self._rounds = np.zeros(len(arms))

    # ------------------------------------------------------------------ learning
    def observe(self, arm: Arm, seen: Sequence[Outcome], first: int = 0) -> None:
        """Rounds of one arm, as they came; of several requests, some of each at a time.

        ``first``: before this one they do not say what branches are worth.
        """
        if not arm.gamma:  # the text goes on, and nobody sees what a draft would make of it
            self._acceptance.end()
            self._acceptance.fade(IDLE * len(seen))
            return
        guesses = [each.guesses for each in seen]
        runs = self._acceptance.observe(guesses)
        if arm.k_max:
            self._compare(arm, guesses[first:], runs[first:])

    def _compare(self, arm: Arm, guesses: Sequence[Guesses], runs: Sequence[int]) -> None:
        """Of the rounds that ``sps`` would have taken, those that end in these ones.

        ``runs``: right guesses before each of them.
        """
        at, step = self._index[arm], arm.gamma + 1
        for (num_right, next_is_right, is_end), run in zip(guesses, runs, strict=True):
            if is_end:
                continue
            length = run + num_right + bool(next_is_right)
            self._wanted[at] += length // step - run // step + (not next_is_right)
            self._rounds[at] += 1.0

    def forget(self, rounds: int) -> None:
        """So many rounds have gone by."""
        keep = 0.5 ** (rounds / HALF_LIFE)
        self._wanted *= keep
        self._rounds *= keep

    # ------------------------------------------------------------------ predicting
    def belief(self) -> Belief:
        """What is known."""
        predicted = np.log(self._acceptance.tokens_a_round(self._gammas.tolist()))[self._which]
        precision = self._rounds / ROUND
        ratio = np.log((self._wanted + FIRST) / (self._rounds + FIRST))
        found = belief(self._prior, np.diag(precision), precision * ratio)
        unsure = np.outer(self._hangs, self._hangs) / self._acceptance.judged
        return Belief(predicted + found.mean, found.covariance + unsure)

    def predict(self, arm: Arm) -> float:
        """Tokens a round, but for what branches are worth."""
        return self._acceptance.tokens_a_round([arm.gamma])[0]
