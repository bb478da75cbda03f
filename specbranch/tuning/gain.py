"""How many tokens a round of each arm brings: predicted from acceptance, corrected by what came."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from .acceptance import KEEP, Acceptance, Rate
from .arms import Arm
from .belief import Belief, Prior, belief, prior_covariance

IDLE = 0.4  # of a chain: as much older a round without one makes all that is known of chains
PRIOR = Prior(family=0.03, smooth=0.03, own=0.01)  # of what is wrong with the predictions
ROUND, PER_TOKEN = 0.03, 0.08  # variance of one round, over its mean squared: of any, by gamma


class Outcome(NamedTuple):
    """What became of one round's chain.

    ``hit``: whether the token at the branch point had a branch; None: the point was not reached.
    ``num_kept``: how much of a branch that was hit is the next chain; None: none was. Both are None
    where ``is_cut``: the end of the request left no room for what the arm would have drafted.
    """

    num_drafted: int
    num_accepted: int
    hit: bool | None = None
    num_kept: int | None = None
    is_cut: bool = False

    @property
    def num_tokens(self) -> int:
        """That the round brought: to what is accepted the target adds one of its own."""
        return self.num_accepted + 1


class Gain:
    """Tokens a round, by arm (logarithms).

    Args:
        arms: in the order that all arrays have.
        gamma: longest chain.
    """

    def __init__(self, arms: Sequence[Arm], gamma: int) -> None:
        self._arms, self._index = list(arms), {arm: idx for idx, arm in enumerate(arms)}
        self._shared = Rate()  # acceptance, of any policy's chains
        self._acceptance = {
            policy: Acceptance(gamma, self._shared) for policy in ("sps", "specbranch")
        }
        drafts = np.array([arm.gamma > 0 for arm in arms])  # what others bring is known
        self._prior = np.outer(drafts, drafts) * prior_covariance(arms, PRIOR)
        self._noise = np.array([ROUND + PER_TOKEN * arm.gamma for arm in arms])
        # An acceptance of few chains is wrong for all arms that draft, and for none that does not.
        self._hangs = np.sqrt([PER_TOKEN * arm.gamma for arm in arms])
        self._chains = 1.0
        self._tokens, self._rounds = np.zeros(len(arms)), np.zeros(len(arms))

    # ------------------------------------------------------------------ learning
    def observe(self, arm: Arm, seen: Sequence[Outcome]) -> None:
        """Chains were judged; some of an arm's rounds will do."""
        if not arm.gamma:
            self._fade(KEEP ** (IDLE * len(seen)))
            return
        self._chains = KEEP ** len(seen) * self._chains + len(seen)
        acceptance = self._acceptance[arm.policy]
        acceptance.add([each.num_drafted for each in seen], [each.num_accepted for each in seen])
        if not arm.k_max:
            return
        for each in seen:
            if each.hit is not None:
                acceptance.add_hit(arm.k_max, each.hit)
            if each.num_kept is not None:
                kept = each.num_kept
                acceptance.confident.add(kept, kept + (kept < arm.gamma))

    def _fade(self, keep: float) -> None:
        """The text goes on, and nobody sees what a draft would make of it."""
        self._chains *= keep
        self._shared.fade(keep)
        for acceptance in self._acceptance.values():
            acceptance.fade(keep)

    def add(self, arm: Arm, tokens: float, rounds: int) -> None:
        """``rounds`` rounds have brought ``tokens`` together."""
        self._tokens[self._index[arm]] += tokens
        self._rounds[self._index[arm]] += rounds

    def forget(self, keep: float) -> None:
        """What was added counts for ``keep`` times as much from now on."""
        self._tokens *= keep
        self._rounds *= keep

    # ------------------------------------------------------------------ predicting
    def belief(self) -> Belief:
        """What is known."""
        predicted = np.log(self._predictions(self._arms))
        precision = self._rounds / self._noise
        mean = self._tokens / np.maximum(self._rounds, 1e-9)
        wrong = np.log(np.maximum(mean, 1e-9)) - predicted
        evidence = np.where(precision > 0.0, precision * wrong, 0.0)
        unsure = np.outer(self._hangs, self._hangs) / max(self._chains, 1.0)
        found = belief(self._prior + unsure, np.diag(precision), evidence)
        return Belief(predicted + found.mean, found.covariance)

    def predict(self, arm: Arm) -> float:
        """Tokens a round, before the correction."""
        return self._predictions([arm])[0]

    def _predictions(self, arms: Sequence[Arm]) -> list[float]:
        """Of each arm."""
        longest, policies = max(arm.gamma for arm in arms), {arm.policy for arm in arms}
        survivals = {
            policy: acceptance.survival(longest)
            for policy, acceptance in self._acceptance.items()
            if policy in policies
        }
        # Of a chain of m tokens all that are reached, and the target's own.
        brought = {policy: list(accumulate(each)) for policy, each in survivals.items()}
        return [
            self._predict_specbranch(arm, survivals[arm.policy], brought[arm.policy])
            if arm.k_max
            else brought.get(arm.policy, [1.0])[arm.gamma]
            for arm in arms
        ]

    def _predict_specbranch(
        self, arm: Arm, survival: Sequence[float], brought: Sequence[float]
    ) -> float:
        """Over the stationary distribution of the chain's length.

        A hit leads to a chain as long as confidence lets it be, anything else to an empty one
        (overlap) or one that the draft stage makes first (serial).
        """
        acceptance = self._acceptance["specbranch"]
        kept, hit = acceptance.kept(arm.gamma), acceptance.hit_rate(arm.k_max)
        share = kept
        if arm.draft_stage == "overlap":
            hits = hit / (1.0 - hit * _mean(kept, survival) + hit)
            share = [hits * part for part in kept]
            share[0] += 1.0 - hits
        return _mean(share, brought)


def _mean(shares: Sequence[float], values: Sequence[float]) -> float:
    """Of the first values, as many as there are shares."""
    return sum(share * value for share, value in zip(shares, values, strict=False))
