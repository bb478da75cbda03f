"""Lookahead decoding (arXiv 2402.02057): the target guesses for itself, in parallel.

Besides the token that is due, each forward of the target reads a window of guesses at ``window``
later positions, gamma levels deep: level 0 is a chain behind the text, and a token of level k + 1
follows that of level k in its column. The row behind the deepest level gives one new token for each
column, a step of a Jacobi iteration, and a column read from top to bottom is an n-gram that the
target itself wrote. N-grams go to a pool under their first token. Those whose first token is the
last of the text are verified in the same forward, as a tree.

Losslessness. New tokens of the window are argmaxes whatever the temperature, and what fills it up
is copied from the text: pool and window are functions of the committed tokens and of no random
number, so n-grams are guesses, of which the target accepts what it draws itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..session import Chain, Committed, Guesses, Session, Settings, Verdict

Ngram = tuple[int, ...]


class Pool:
    """N-grams by their first token, the latest ones of each, latest first.

    Args:
        size: most n-grams of one first token.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._found: dict[int, list[Ngram]] = {}

    def add(self, first: int, rest: Ngram) -> None:
        """Keep an n-gram, in place of the oldest."""
        known = self._found.setdefault(first, [])
        if rest in known:
            known.remove(rest)
        known.insert(0, rest)
        del known[self._size :]

    def after(self, first: int) -> list[Ngram]:
        """What is known to follow ``first``."""
        return list(self._found.get(first, ()))


class Lookahead:
    """One model: n-grams from a Jacobi iteration, verified as a tree."""

    needs_draft = False
    overlaps = False

    def __init__(self) -> None:
        self._pool: Pool | None = None
        self._levels: list[list[int]] = []  # [gamma][window]

    @staticmethod
    def target_nodes(settings: Settings) -> int:
        """Most nodes of one forward: the last token, the window, the n-grams."""
        return 1 + settings.gamma * (settings.window + settings.k_max)

    def round(self, session: Session) -> Committed:
        """Read n-grams and window in one forward, commit what matched, move the window."""
        pool = self._open(session)
        ngrams = [ngram[: session.chain_room()] for ngram in pool.after(session.tokens[-1])]
        guesses, window = tree_of(ngrams), self._window_nodes(session)
        logits = session.target_forward_tree(guesses + window)
        path, token = session.match(logits[: len(guesses) + 1], guesses)
        main = _main_line(ngrams, [guesses.tokens[node] for node in path])
        session.stats.drafted += len(main)
        session.stats.sibling_tokens += len(guesses) - len(main)
        committed = session.commit(Chain(list(main)), Verdict(len(path), token), path=path)
        if len(window):
            self._iterate(pool, logits[-session.settings.window :], session, len(committed.tokens))
        return committed

    def _open(self, session: Session) -> Pool:
        """The pool; the window starts with the text, again and again."""
        if self._pool is None:
            settings, text = session.settings, session.tokens
            self._pool = Pool(settings.k_max)
            self._levels = [
                [text[-1 - (level + column) % len(text)] for column in range(settings.window)]
                for level in range(settings.gamma)
            ]
        return self._pool

    def _window_nodes(self, session: Session) -> Guesses:
        """The window's nodes, level by level; none where they would go past the end."""
        width, depth = session.settings.window, session.settings.gamma
        if session.length + width + depth > session.total:
            return Guesses([], [])
        parents = [*range(-1, width - 1), *range((depth - 1) * width)]
        return Guesses([token for level in self._levels for token in level], parents)

    def _iterate(
        self, pool: Pool, logits: torch.Tensor, session: Session, num_committed: int
    ) -> None:
        """Keep the columns as n-grams; the new level comes in below, the oldest goes."""
        levels = [*self._levels, logits.argmax(-1).tolist()]
        for first, *rest in zip(*levels, strict=True):
            pool.add(first, tuple(rest))
        # The window moves on with the text; one position of it by dropping the oldest level.
        passed = min(num_committed - 1, session.settings.window)
        fill = [session.tokens[-1 - idx % session.length] for idx in range(passed)]
        self._levels = [[*level[passed:], *fill] for level in levels[1:]]


def tree_of(ngrams: Sequence[Ngram]) -> Guesses:
    """N-grams as a tree in which equal beginnings are one path."""
    nodes: dict[Ngram, int] = {(): -1}
    tokens: list[int] = []
    parents: list[int] = []
    for ngram in ngrams:
        for depth in range(1, len(ngram) + 1):
            if ngram[:depth] not in nodes:
                nodes[ngram[:depth]] = len(tokens)
                tokens.append(ngram[depth - 1])
                parents.append(nodes[ngram[: depth - 1]])
    return Guesses(tokens, parents)


def _main_line(ngrams: Sequence[Ngram], accepted: Sequence[int]) -> Ngram:
    """The n-gram that was accepted furthest; of several the latest."""
    for ngram in ngrams:
        if ngram[: len(accepted)] == tuple(accepted):
            return ngram
    return ()
