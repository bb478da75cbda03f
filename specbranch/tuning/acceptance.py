"""How far the draft's guesses hold along the text, learnt from the rounds of any policy.

With coupled random numbers a guess at one place of the text is right or wrong whoever asks for it,
so that what one policy's chains show is true of all others' as well. ``sps`` needs of a run of L
right guesses and the wrong one behind it ``floor(L / (gamma + 1)) + 1`` rounds, whatever gamma is:
how long runs are says what each gamma would have brought on the same text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

HALF_LIFE = 1600.0  # tokens of the text after which what it showed counts half: texts differ
SHOWN = 32  # lengths of a run that are told apart
ALIKE = 8.0  # guesses that what is known of all runs, and of the next shorter one, counts as
FIRST_GUESS, FIRST_WEIGHT = 0.7, 8.0
SUREST = 0.999  # chance that a guess behind a long run holds, at most


class Guesses(NamedTuple):
    """Of one round: how many were right, whether the next one was, and whether the text ends there.

    ``next_is_right``: None where nobody has asked for that one.
    """

    num_right: int
    next_is_right: bool | None
    is_end: bool = False


class Acceptance:
    """Chance that the next guess is right, by how many before it were."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._right, self._judged = np.zeros(SHOWN), np.zeros(SHOWN)
        self._right[0], self._judged[0] = FIRST_GUESS * FIRST_WEIGHT, FIRST_WEIGHT
        self._chances = [FIRST_GUESS] * SHOWN
        self._is_open = False  # whether it is not known if the last guess was right
        self.run = 0  # right guesses up to here, or up to that one

    def observe(self, rounds: Iterable[Guesses]) -> list[int]:
        """Rounds that followed one another.

        A guess that nobody has asked for was right with a chance that the next round tells
        (Bayes): what it shows is likelier behind a longer run, or behind none. It counts for so
        much, and the run goes on or ends as is drawn.

        Returns:
            How many guesses were right before each of the rounds.
        """
        right, judged, runs = [0.0] * SHOWN, [0.0] * SHOWN, []
        tokens = 0
        for each in rounds:
            if self._is_open:
                self._close(each, right, judged)
            runs.append(self.run)
            tokens += each.num_right + 1
            for length in range(self.run, self.run + each.num_right):
                right[min(length, SHOWN - 1)] += 1.0
                judged[min(length, SHOWN - 1)] += 1.0
            self.run += each.num_right
            if each.is_end:
                self.end()
            elif each.next_is_right is None:
                self._is_open = True
            else:
                at = min(self.run, SHOWN - 1)
                right[at] += each.next_is_right
                judged[at] += 1.0
                self.run = self.run + 1 if each.next_is_right else 0
        self.fade(tokens)
        self._right += right
        self._judged += judged
        self._chances = self._known()
        return runs

    def _known(self) -> list[float]:
        """Chances, by length: of what was seen of one, of all, and of the next shorter one."""
        rate = last = self.rate
        chances = []
        for right, judged in zip(self._right.tolist(), self._judged.tolist(), strict=True):
            last = (right + ALIKE * (rate + last) / 2.0) / (judged + ALIKE)
            chances.append(last)
        return chances

    def _close(self, following: Guesses, right: list[float], judged: list[float]) -> None:
        """Whether the guess was right that nobody has asked for."""
        at = min(self.run, SHOWN - 1)
        holds = self._chances[at] * self._chance_of(following, self.run + 1)
        breaks = (1.0 - self._chances[at]) * self._chance_of(following, 0)
        share = holds / (holds + breaks) if holds + breaks else self._chances[at]
        right[at] += share
        judged[at] += 1.0
        self.run = self.run + 1 if self._rng.random() < share else 0
        self._is_open = False

    def _chance_of(self, seen: Guesses, run: int) -> float:
        """Of what a round showed, where it began behind so many right guesses."""
        chance = 1.0
        for length in range(run, run + seen.num_right):
            chance *= self._chances[min(length, SHOWN - 1)]
        if seen.next_is_right is None:
            return chance
        last = self._chances[min(run + seen.num_right, SHOWN - 1)]
        return chance * (last if seen.next_is_right else 1.0 - last)

    def end(self) -> None:
        """What follows is another text, or a part of it that the draft has not seen."""
        self.run, self._is_open = 0, False

    def fade(self, tokens: float) -> None:
        """So many tokens of the text have gone by. It never counts for less than a first guess."""
        keep = max(0.5 ** (tokens / HALF_LIFE), min(1.0, FIRST_WEIGHT / self.judged))
        self._right *= keep
        self._judged *= keep

    @property
    def judged(self) -> float:
        """Guesses that are known, those that count less in proportion."""
        return float(self._judged.sum())

    @property
    def rate(self) -> float:
        """Share of guesses that are right."""
        return float(self._right.sum()) / self.judged

    def tokens_a_round(self, gammas: Sequence[int]) -> list[float]:
        """That ``sps`` brings, for each gamma; 0 is ``ar``."""
        longer = min(SUREST, self._chances[-1])  # of all lengths that are not told apart
        reached = np.cumprod([1.0, *self._chances[:-1], longer])  # runs of at least 0 .. SHOWN
        every = reached[:-1].sum() + reached[-1] / (1.0 - longer)
        found = []
        for gamma in gammas:
            step = gamma + 1
            more = longer ** (-SHOWN % step) / (1.0 - longer**step)
            found.append(float(every / (reached[:-1:step].sum() + reached[-1] * more)))
        return found
