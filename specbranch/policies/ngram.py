"""Prompt lookup decoding (Saxena 2023): the text itself is the draft.

The last few tokens are looked up in what was written before, prompt and output alike; the tokens
that followed them there are guessed to follow here too. A guess is no draw from a distribution, so
the target accepts each of its tokens with the probability that it gives it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..session import Committed, Session


class PromptLookup:
    """One model: a chain is copied from an earlier place in the text."""

    needs_draft = False
    overlaps = False

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], int] = {}  # n-gram -> where its latest end was
        self._indexed = 0  # ends up to here are in it

    def round(self, session: Session) -> Committed:
        """Look up, verify, commit."""
        settings = session.settings
        chain = session.guess(self._look_up(session.tokens, settings.max_ngram, settings.gamma))
        verdict = session.verify(session.target_forward(chain), chain)
        return session.commit(chain, verdict)

    def _look_up(self, text: Sequence[int], max_ngram: int, count: int) -> list[int]:
        """What followed the longest known end of ``text``, at its latest earlier place.

        A copy that reaches the end of the text goes on with what it has copied: a phrase that
        repeats itself is guessed to go on doing so.
        """
        end = self._earlier_end(text, max_ngram)
        if end < 0:
            return []
        copied = list(text[end : end + count])
        period = len(text) - end
        for idx in range(period, count):
            copied.append(copied[idx - period])
        return copied

    def _earlier_end(self, text: Sequence[int], max_ngram: int) -> int:
        """Where the longest end of ``text`` that occurs earlier ended there; -1: none does."""
        for end in range(self._indexed + 1, len(text)):
            for size in range(1, min(max_ngram, end) + 1):
                self._seen[tuple(text[end - size : end])] = end
        self._indexed = len(text) - 1
        for size in range(min(max_ngram, len(text)), 0, -1):
            end = self._seen.get(tuple(text[-size:]), -1)
            if end >= 0:
                return end
        return -1
