"""The speculation tree: pending nodes with parents, and which of them each one sees."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import numpy as np


class SpeculationTree:
    """Nodes behind the committed prefix, in the order in which they were added.

    A node sees the prefix, its ancestors and itself; what it sees is kept as a bit set (a Python
    integer), so that growing the tree costs one shift and one or a node.

    Args:
        capacity: most nodes.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._visible: list[int] = []
        self._chained = 0  # leading nodes of which each is the child of the one before

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def is_chain(self) -> bool:
        """Whether every node is the child of the one before it."""
        return self._chained == len(self.parents)

    def grow(self, count: int, parents: Sequence[int] | None = None) -> None:
        """Add ``count`` nodes; ``parents`` None: a chain from the last node.

        Raises:
            ValueError: more nodes than the capacity, or a parent that is not before its child.
            TypeError: a parent that is no integer. The tree is then as it was.
        """
        first = len(self.parents)
        if first + count > self.capacity:
            raise ValueError(
                f"tokens had {count} nodes after {first}; the tree must have at most "
                f"{self.capacity}"
            )
        if parents is None:
            parents = range(first - 1, first - 1 + count)
        elif len(parents) != count:
            raise ValueError(f"parents had {len(parents)} entries; it must have {count}")
        try:
            parents = [index(parent) for parent in parents]
        except TypeError as error:
            raise TypeError(f"parents was {parents!r}; it must hold integers") from error
        for idx, parent in enumerate(parents, first):
            if not -1 <= parent < idx:
                raise ValueError(
                    f"parents of node {idx} was {parent}; it must be in -1 .. {idx - 1}"
                )
        for idx, parent in enumerate(parents, first):
            self.parents.append(parent)
            self.depths.append(self.depths[parent] + 1 if parent >= 0 else 0)
            above = self._visible[parent] if parent >= 0 else 0
            self._visible.append(above | 1 << idx)
            if parent == idx - 1 and self._chained == idx:
                self._chained += 1

    def bits(self, first: int) -> np.ndarray:
        """Packed visibility ``[N, ceil(len / 32)]`` int32 of the nodes from ``first`` on."""
        words = (len(self) + 31) // 32
        rows = b"".join(seen.to_bytes(4 * words, "little") for seen in self._visible[first:])
        return np.frombuffer(rows, dtype="<i4").reshape(len(self) - first, words)

    def check_path(self, path: Sequence[int]) -> None:
        """Raise ValueError unless ``path`` goes from the root down, child by child."""
        above = -1
        for node in path:
            if not 0 <= node < len(self) or self.parents[node] != above:
                raise ValueError(
                    f"path was {list(path)}; each node must be a pending child of the one before"
                )
            above = node

    def truncate(self, count: int) -> None:
        """Drop the nodes from ``count`` on."""
        del self.parents[count:], self.depths[count:], self._visible[count:]
        self._chained = min(self._chained, count)

    def clear(self) -> None:
        """Drop all nodes."""
        self.truncate(0)
