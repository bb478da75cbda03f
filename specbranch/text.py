"""Committed tokens to streamed text: whole characters only, stop strings never shown."""

from __future__ import annotations

from collections.abc import Sequence

from .tokenizer import Tokenizer


class TextStream:
    """Turns tokens into text piece by piece.

    Text that might be the beginning of a stop string is held back until it is known not to be.

    Args:
        tokenizer: None streams tokens only; every piece is then empty.
        stop: strings that end the text.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str] = ()) -> None:
        self._decoder = tokenizer.stream_decoder() if tokenizer is not None else None
        self._stop = tuple(stop)
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Text that ``token`` completes; sets ``stopped`` where it completes a stop string."""
        return self._release(self._decoder.push(token)) if self._decoder is not None else ""

    def finish(self) -> str:
        """What is left at the end, unless a stop string ended the text."""
        if self._decoder is None or self.stopped:
            return ""
        piece = self._release(self._decoder.finish())
        if not self.stopped:
            piece += self._held
            self.text += self._held
            self._held = ""
        return piece

    def _release(self, piece: str) -> str:
        held = self._held + piece
        found = [at for at in (held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            keep = min(found)
        else:
            keep = len(held) - self._num_undecided(held)
        self._held = held[keep:]
        self.text += held[:keep]
        return held[:keep]

    def _num_undecided(self, held: str) -> int:
        """Length of the longest end of ``held`` that begins a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(held)), longest, -1):
                if held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
