"""``--show``: colour every token by where it came from.

Tokens are not characters: a token may hold part of one, several, or none. Colours are therefore
laid over the text that the engine streams, never over the tokens' own bytes: each character takes
the colour of the token that completed it, so no colour change can fall inside a character.
"""

from __future__ import annotations

import unicodedata
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

RESET = "\x1b[0m"
# The order of the legend, and the ANSI code of each origin.
COLOURS = {
    "plain": "\x1b[37m",  # drawn by the target alone, nothing was drafted
    "chain": "\x1b[32m",  # drafted and accepted
    "branch": "\x1b[36m",  # one of the candidates at the branch point
    "recovered": "\x1b[31m",  # the target's token in place of a rejected one
    "bonus": "\x1b[33m",  # the target's own token after a whole chain was accepted
}
MEANINGS = {
    "plain": "target alone",
    "chain": "drafted, accepted",
    "branch": "branch survived",
    "recovered": "draft rejected",
    "bonus": "target's own extra",
}
JOINERS = "\u200d\ufe0e\ufe0f"  # zero-width joiner and variation selectors


def legend() -> str:
    """One line that names the colours."""
    return "  ".join(f"{COLOURS[name]}{name}{RESET} ({MEANINGS[name]})" for name in COLOURS)


class StreamDecoder(Protocol):
    """What a tokenizer's ``stream_decoder()`` gives."""

    def push(self, token: int) -> str:
        """The text that is complete with ``token`` and was not before it."""
        ...


class Colourer:
    """Colours the pieces of one streamed text.

    Args:
        decoder: a fresh stream decoder of the tokenizer; it says which token completes what.
    """

    def __init__(self, decoder: StreamDecoder) -> None:
        self._decoder = decoder
        self._origins: deque[tuple[str, int]] = deque()  # origin, characters not yet printed
        self._last = "plain"

    def colour(self, tokens: Sequence[int], origins: Sequence[str], text: str) -> str:
        """``text`` in colours; ``tokens`` are new, ``text`` may lag behind them."""
        for token, origin in zip(tokens, origins, strict=True):
            self._origins.append((origin, len(self._decoder.push(token))))
        parts: list[str] = []
        current = ""
        for character in text:
            origin = self._next_origin(character)
            if origin != current:
                parts.append((RESET if current else "") + COLOURS[origin])
                current = origin
            parts.append(character)
        return "".join(parts) + (RESET if current else "")

    def _next_origin(self, character: str) -> str:
        while self._origins and self._origins[0][1] == 0:
            self._origins.popleft()
        if self._origins:
            origin, num_left = self._origins[0]
            self._origins[0] = (origin, num_left - 1)
            if not _joins(character):
                self._last = origin
        return self._last


def _joins(character: str) -> bool:
    """Whether a terminal draws this into the cell of the character before."""
    return unicodedata.combining(character) != 0 or character in JOINERS


def strip(text: str) -> str:
    """``text`` without the codes that ``Colourer`` puts in."""
    return "".join(piece for _, piece in runs(text))


def runs(text: str) -> Iterator[tuple[str, str]]:
    """Split coloured text into (origin, text) runs; ``""`` where no colour is on."""
    origins = {code: name for name, code in COLOURS.items()} | {RESET: ""}
    current, start, position = "", 0, 0
    while (position := text.find("\x1b[", start)) >= 0:
        if position > start:
            yield current, text[start:position]
        end = text.index("m", position) + 1
        current = origins.get(text[position:end], current)
        start = end
    if start < len(text):
        yield current, text[start:]
