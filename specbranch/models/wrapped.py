"""A state that stands before another: what it does not change goes on to the one behind."""

from __future__ import annotations

from collections.abc import Sequence

from .protocol import DecoderState


class WrappedState:
    """What wrappers of a ``DecoderState`` share; ``prefill`` and ``forward`` are their own.

    Args:
        state: the one behind.
    """

    def __init__(self, state: DecoderState) -> None:
        self.state = state

    @property
    def length(self) -> int:
        """Tokens of the prefix."""
        return self.state.length

    @property
    def num_nodes(self) -> int:
        """Pending nodes."""
        return self.state.num_nodes

    def commit(self, path: Sequence[int]) -> None:
        """Append a path of pending nodes to the prefix."""
        self.state.commit(path)

    def rollback(self, length: int) -> None:
        """Cut the prefix."""
        self.state.rollback(length)
