"""How far the draft's guesses hold along the text, learnt from the rounds of any policy.

With coupled random numbers a guess at one place of the text is right or wrong whoever asks for it,
so that what one policy's chains show is true of all others' as well. ``sps`` needs of a run of L
right guesses and the wrong one behind it ``floor(L / (gamma + 1)) + 1`` rounds, whatever gamma is:
how long runs are says what each gamma would have brought on the same text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .belief import Floats

HALF_LIFE = 1600.0  # tokens of the text after which what it showed counts half: texts differ
SHOWN = 32  # lengths of a run that are told apart
FAR = 256  # of what a gamma brings, longer runs hardly change anything
OVERALL = 8.0  # guesses that all lengths' rate counts as, in the rate of one
FIRST_GUESS, FIRST_WEIGHT = 0.7, 8.0


def rounds_of_run(length: int, gamma: int) -> int:
    """Rounds of ``sps`` for so many right guesses and the wrong one behind them."""
    return length // (gamma + 1) + 1


class Acceptance:
    """Chance that the next guess is right, by how many before it were."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._right, self._judged = np.zeros(SHOWN), np.zeros(SHOWN)
        self._first = FIRST_WEIGHT
        self._run = 0  # right guesses up to here
        self._chances = np.full(SHOWN, FIRST_GUESS)

    def observe(self, chains: Iterable[tuple[int, bool | None]]) -> None:
        """Of each round how many guesses were right, and whether the next one was.

        None: nobody has asked for that one. It is drawn, so that the run goes on or ends.
        """
        right, judged = [0] * SHOWN, [0] * SHOWN
        run, tokens = self._run, 0
        for accepted, is_right in chains:
            tokens += accepted + 1
            for length in range(run, run + accepted):
                right[min(length, SHOWN - 1)] += 1
                judged[min(length, SHOWN - 1)] += 1
            run += accepted
            at = min(run, SHOWN - 1)
            if is_right is None:
                goes_on = self._rng.random() < self._chances[at]
            else:
                goes_on = is_right
                right[at] += is_right
                judged[at] += 1
            run = run + 1 if goes_on else 0
        self._run = run
        self.fade(tokens)
        self._right += right
        self._judged += judged
        self._chances = (self._right + OVERALL * self.rate) / (self._judged + OVERALL)

    def fade(self, tokens: float) -> None:
        """So many tokens of the text have gone by."""
        keep = 0.5 ** (tokens / HALF_LIFE)
        self._right *= keep
        self._judged *= keep
        self._first *= keep

    @property
    def judged(self) -> float:
        """Guesses that are known, those that count less in proportion."""
        return float(self._judged.sum()) + self._first

    @property
    def rate(self) -> float:
        """Share of guesses that are right."""
        return float((self._right.sum() + FIRST_GUESS * self._first) / self.judged)

    def tokens_a_round(self, gammas: Sequence[int]) -> list[float]:
        """That ``sps`` brings, for each gamma; 0 is ``ar``."""
        chances: Floats = self._chances
        more = np.concatenate((chances, np.full(FAR - SHOWN, chances[-1])))
        reached = np.concatenate(([1.0], more.cumprod()))  # runs that are at least so long
        every = reached.sum()
        return [float(every / reached[:: gamma + 1].sum()) for gamma in gammas]
