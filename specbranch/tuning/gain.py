"""How many tokens a round of each arm brings.

Of ``sps`` acceptance tells (``acceptance.py``). Of ``specbranch`` it tells what ``sps`` would bring
with the same gamma; the rounds that this would have taken over those it took, on the same text, is
a ratio that is learnt: it hardly changes where tokens a round double or halve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .acceptance import Acceptance, rounds_of_run
from .arms import Arm
from .belief import Belief, Prior, belief, prior_covariance

IDLE = 1.5  # tokens of the text: as much older a round without a chain makes what is known of it
PRIOR = Prior(family=0.2, smooth=0.05, own=0.02, bend=0.2)  # of the ratio's logarithm
ROUND = 0.15  # variance of the ratio of one round
DOUBT = 0.17  # variance that one guess leaves, by gamma
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
    def num_tokens(self) -> int:
        """That the round brought: to what is accepted the target adds one of its own."""
        return self.num_accepted + 1

    @property
    def next_is_right(self) -> bool | None:
        """Of the guess behind those that are accepted."""
        return False if self.num_accepted < self.num_drafted else self.is_right


class Gain:
    """Tokens a round, by arm (logarithms).

    Args:
        arms: in the order that all arrays have.
        rng: draws what is not known of a text.
    """

    def __init__(self, arms: Sequence[Arm], rng: np.random.Generator) -> None:
        self._arms, self._index = list(arms), {arm: idx for idx, arm in enumerate(arms)}
        self._acceptance = Acceptance(rng)
        branching = np.array([arm.k_max > 0 for arm in arms])  # of others acceptance says all
        self._prior = np.outer(branching, branching) * prior_covariance(arms, PRIOR)
        # An acceptance of few guesses is wrong for all arms that draft, and for none that does not.
        self._hangs = np.sqrt([DOUBT * arm.gamma for arm in arms])
        self._wanted = np.zeros(len(arms))  # rounds that sps would have taken
        self._rounds = np.zeros(len(arms))

    # ------------------------------------------------------------------ learning
    def observe(self, arm: Arm, seen: Sequence[Outcome]) -> None:
        """Rounds that followed one another."""
        if arm.gamma:
            self._acceptance.observe((each.num_accepted, each.next_is_right) for each in seen)
        else:  # the text goes on, and nobody sees what a draft would make of it
            self._acceptance.fade(IDLE * len(seen))

    def compare(self, arm: Arm, seen: Sequence[Outcome]) -> None:
        """The same, and they say what branches are worth: they are neither the first nor cut."""
        if not arm.k_max or not seen:
            return
        run, wanted = 0, 0.0
        for each in seen:
            run += each.num_accepted
            if each.next_is_right:
                run += 1
            else:
                wanted += rounds_of_run(run, arm.gamma)
                run = 0
        self._wanted[self._index[arm]] += wanted + run / (arm.gamma + 1)
        self._rounds[self._index[arm]] += len(seen)

    def forget(self, rounds: int) -> None:
        """So many rounds have gone by."""
        keep = 0.5 ** (rounds / HALF_LIFE)
        self._wanted *= keep
        self._rounds *= keep

    # ------------------------------------------------------------------ predicting
    def belief(self) -> Belief:
        """What is known."""
        predicted = np.log(self._acceptance.tokens_a_round([arm.gamma for arm in self._arms]))
        precision = self._rounds / ROUND
        ratio = np.log(np.maximum(self._wanted, 1e-9) / np.maximum(self._rounds, 1e-9))
        evidence = np.where(precision > 0.0, precision * ratio, 0.0)
        found = belief(self._prior, np.diag(precision), evidence)
        unsure = np.outer(self._hangs, self._hangs) / self._acceptance.judged
        return Belief(predicted + found.mean, found.covariance + unsure)

    def predict(self, arm: Arm) -> float:
        """Tokens a round, but for what branches are worth."""
        return self._acceptance.tokens_a_round([arm.gamma])[0]
