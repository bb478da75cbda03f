"""How far chains hold, learnt while decoding; texts differ, and the old ones soon hardly count."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

KEEP = 0.5 ** (1 / 250)  # of the past, with each chain that is judged
SHIFT = 0.7  # of how much other chains say that texts have changed since this policy's own
SUREST = 0.999  # share of successes, at most, in odds
WEIGHT = 100.0  # of what is known of all policies' positions, in one policy's own
POSITION = 8.0  # of what is known of all positions, in one position's own rate
FIRST_GUESS, FIRST_WEIGHT = 0.7, 4.0


class Rate:
    """Share of successes; starts from a guess and forgets slowly."""

    def __init__(self, guess: float = FIRST_GUESS, weight: float = FIRST_WEIGHT) -> None:
        self.good, self.total = guess * weight, weight

    def add(self, good: float, total: float = 1.0, chains: int = 1) -> None:
        """``good`` successes among ``total``, of so many chains."""
        self.fade(KEEP**chains)
        self.good += good
        self.total += total

    def fade(self, keep: float) -> None:
        """What is known counts for ``keep`` times as much from now on."""
        self.good *= keep
        self.total *= keep

    @property
    def value(self) -> float:
        """The share."""
        return self.good / self.total

    @property
    def odds(self) -> float:
        """Logarithm of the odds; no other for what has faded."""
        return math.log(_odds(self.value))


def _odds(share: float) -> float:
    """Neither 0 nor infinite."""
    share = min(SUREST, max(1.0 - SUREST, share))
    return share / (1.0 - share)


class Acceptance:
    """Rates by position in the chain, and of what follows the chain; of one policy.

    Acceptance follows the text. While another policy runs, its chains tell how texts have changed
    since this one's were judged; as they are not quite alike, most of that is believed, not all.

    Args:
        gamma: longest chain.
        shared: acceptance of any policy's chains.
    """

    def __init__(self, gamma: int, shared: Rate) -> None:
        self._shared, self._overall = shared, Rate(0.0, 0.0)
        self._then = Rate(0.0, 0.0)  # mean of the shared odds when these chains were judged
        self._positions = np.arange(gamma)
        self._good, self._total = np.zeros(gamma), np.zeros(gamma)  # by position
        self.confident = Rate(1.0)  # positions that the draft is sure enough of to go on
        self._hits: dict[int, Rate] = {}  # by k_max

    def add(self, num_drafted: Sequence[int], num_accepted: Sequence[int]) -> None:
        """Chains were judged, a few: all of them are equally old."""
        accepted = np.array(num_accepted)
        judged = np.minimum(num_drafted, accepted + 1)
        for rate in (self._shared, self._overall):
            rate.add(float(accepted.sum()), float(judged.sum()), len(accepted))
        self._then.add(len(accepted) * self._shared.odds, len(accepted), len(accepted))
        self._fade_positions(KEEP ** len(accepted))
        self._good += (accepted[:, None] > self._positions).sum(0)
        self._total += (judged[:, None] > self._positions).sum(0)

    def fade(self, keep: float) -> None:
        """What is known, but not of all policies, counts for ``keep`` times as much from now on."""
        self._overall.fade(keep)
        self._then.fade(keep)
        self._fade_positions(keep)

    def _fade_positions(self, keep: float) -> None:
        self._good *= keep
        self._total *= keep

    def add_hit(self, k_max: int, hit: bool) -> None:
        """A branch point was reached."""
        if k_max not in self._hits:
            self._hits[k_max] = Rate(self.hit_rate(k_max))
        self._hits[k_max].add(hit)

    def hit_rate(self, k_max: int) -> float:
        """Chance that the token at the branch point has a branch.

        A number of branches that was never tried gets the benefit of the doubt.
        """
        if not self._hits:
            return FIRST_GUESS
        if k_max in self._hits:
            return self._hits[k_max].value
        known = min(self._hits, key=lambda each: abs(each - k_max))
        more = max(1.0, k_max / known) ** 0.5
        return float(1.0 - (1.0 - self._hits[known].value) ** more)

    def survival(self, gamma: int) -> list[float]:
        """Chance that the first j tokens are all accepted, ``j = 0 .. gamma``."""
        shared, own = self._shared.odds, self._overall
        mean, usual = shared, FIRST_GUESS
        if own.total:
            known, usual = own.total / (own.total + WEIGHT), own.value
            mean += known * (own.odds + SHIFT * (shared - self._then.value) - shared)
        better = math.exp(mean) / _odds(usual)  # than at what counts were made, in odds
        alive, survival = 1.0, [1.0]
        counts = zip(self._good[:gamma].tolist(), self._total[:gamma].tolist(), strict=True)
        for good, total in counts:
            odds = better * _odds((good + POSITION * usual) / (total + POSITION))
            alive *= odds / (1.0 + odds)
            survival.append(alive)
        return survival

    def kept(self, gamma: int) -> list[float]:
        """Chance that a chain has m tokens when confidence alone cuts it, ``m = 0 .. gamma``."""
        sure = self.confident.value
        return [sure**m * (1.0 - sure) for m in range(gamma)] + [sure**gamma]
