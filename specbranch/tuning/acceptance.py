"""How far chains hold, learnt while decoding."""

from __future__ import annotations

import math
from itertools import accumulate
from operator import mul

MOST = 4000.0  # judged tokens after which the past counts half
WEIGHT = 8.0  # of what is known of all positions, in one position's own rate
FIRST_GUESS, FIRST_WEIGHT = 0.7, 4.0


class Rate:
    """Share of successes; starts from a guess and forgets slowly."""

    def __init__(self, guess: float = FIRST_GUESS, weight: float = FIRST_WEIGHT) -> None:
        self.good, self.total = guess * weight, weight

    def add(self, good: float, total: float = 1.0) -> None:
        """``good`` successes among ``total``."""
        self.good, self.total = self.good + good, self.total + total
        if self.total > MOST:
            self.good, self.total = self.good / 2, self.total / 2

    @property
    def value(self) -> float:
        """The share."""
        return self.good / self.total


class Acceptance:
    """Rates by position in the chain, and of what follows the chain.

    Args:
        gamma: longest chain.
        shared: acceptance of any policy's chains, a first guess for this one's.
    """

    def __init__(self, gamma: int, shared: Rate) -> None:
        self._shared, self._overall = shared, Rate(0.0, 0.0)
        self._at = [Rate(0.0, 0.0) for _ in range(gamma)]
        self.confident = Rate(1.0)  # positions that the draft is sure enough of to go on
        self._hits: dict[int, Rate] = {}  # by k_max

    def add(self, num_drafted: int, num_accepted: int) -> None:
        """A chain was judged."""
        judged = min(num_drafted, num_accepted + 1)
        for rate in (self._shared, self._overall):
            rate.add(num_accepted, judged)
        for idx in range(judged):
            self._at[idx].add(idx < num_accepted)

    def add_hit(self, k_max: int, hit: bool) -> None:
        """A branch point was reached."""
        if k_max not in self._hits:
            self._hits[k_max] = Rate(self.hit_rate(k_max))
        self._hits[k_max].add(hit)

    def hit_rate(self, k_max: int, hope: float = 0.0) -> float:
        """Chance that the token at the branch point has a branch; ``hope`` for what is not sure.

        A number of branches that was never tried gets the benefit of the doubt.
        """
        if not self._hits:
            return FIRST_GUESS
        if k_max in self._hits:
            rate = self._hits[k_max]
            return min(1.0, rate.value + hope / math.sqrt(rate.total))
        known = min(self._hits, key=lambda each: abs(each - k_max))
        more = max(1.0, k_max / known) ** 0.5
        return float(1.0 - (1.0 - self._hits[known].value) ** more)

    def survival(self, gamma: int) -> list[float]:
        """Chance that the first j tokens are all accepted, ``j = 0 .. gamma``."""
        mean = _mixed(self._overall, self._shared.value)
        rates = [_mixed(at, mean) for at in self._at[:gamma]]
        return list(accumulate(rates, mul, initial=1.0))

    def kept(self, gamma: int) -> list[float]:
        """Chance that a chain has m tokens when confidence alone cuts it, ``m = 0 .. gamma``."""
        sure = self.confident.value
        return [sure**m * (1.0 - sure) for m in range(gamma)] + [sure**gamma]


def _mixed(rate: Rate, guess: float) -> float:
    """A rate of few or no cases, drawn towards a guess."""
    return (rate.good + WEIGHT * guess) / (rate.total + WEIGHT)
