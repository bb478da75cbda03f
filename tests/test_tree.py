"""The speculation tree: growth, what each node sees, and which paths may be kept."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from specbranch import ops
from specbranch.tree import SpeculationTree


def grown(
    parents: list[int], steps: list[int] | None = None, capacity: int = 128
) -> SpeculationTree:
    """A tree of ``parents``, grown in steps of the given sizes."""
    tree = SpeculationTree(capacity)
    first = 0
    for count in steps or [len(parents)]:
        tree.grow(count, parents[first : first + count])
        first += count
    return tree


@pytest.mark.parametrize("count", [1, 5, 31, 32, 33, 64, 65, 100])
def test_bits_and_depths_are_those_of_tree_mask(count: int) -> None:
    rng = random.Random(count)
    parents = [rng.randint(-1, idx - 1) for idx in range(count)]
    expected = ops.tree_mask(np.array([parents], dtype=np.int32))
    half = count // 2
    tree = grown(parents, [half, count - half] if half else [count])
    np.testing.assert_array_equal(tree.bits(0), expected.bits[0])
    np.testing.assert_array_equal(tree.bits(half), expected.bits[0, half:])
    assert tree.depths == expected.depth[0].tolist()


def test_chain() -> None:
    tree = SpeculationTree(8)
    assert tree.is_chain and len(tree) == 0
    tree.grow(2)
    tree.grow(3)
    assert tree.parents == [-1, 0, 1, 2, 3]
    assert tree.is_chain
    tree.grow(1, [1])
    assert not tree.is_chain
    tree.grow(1, [5])
    assert not tree.is_chain
    tree.truncate(5)
    assert tree.is_chain
    tree.grow(1)
    assert tree.parents[-1] == 4 and tree.is_chain
    tree.clear()
    tree.grow(2, [-1, -1])
    assert not tree.is_chain


def test_truncated_as_if_never_grown() -> None:
    tree = grown([-1, -1, 0, 1, 3])
    tree.truncate(3)
    tree.grow(1, [1])
    np.testing.assert_array_equal(tree.bits(0), grown([-1, -1, 0, 1]).bits(0))
    assert tree.depths == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("count", "parents", "error", "message"),
    [
        (6, None, ValueError, r"tokens had 6 nodes after 3; .* at most 8"),
        (2, [0], ValueError, r"parents had 1 entries; it must have 2"),
        (1, [0, 1], ValueError, r"parents had 2 entries; it must have 1"),
        (1, [3], ValueError, r"parents of node 3 was 3; it must be in -1 \.\. 2"),
        (2, [0, 4], ValueError, r"parents of node 4 was 4; it must be in -1 \.\. 3"),
        (1, [-2], ValueError, r"parents of node 3 was -2; it must be in -1 \.\. 2"),
        (2, [0, 1.0], TypeError, r"parents was \[0, 1.0\]; it must hold integers"),
        (1, [None], TypeError, r"parents was \[None\]; it must hold integers"),
    ],
)
def test_refused_growth_leaves_the_tree_alone(
    count: int, parents: Any, error: type[Exception], message: str
) -> None:
    tree = grown([-1, 0, 0], capacity=8)
    before = tree.bits(0).copy()
    with pytest.raises(error, match=message):
        tree.grow(count, parents)
    assert (tree.parents, tree.depths, tree.is_chain) == ([-1, 0, 0], [0, 1, 1], False)
    np.testing.assert_array_equal(tree.bits(0), before)


@pytest.mark.parametrize("path", [[], [0], [0, 2], [1], [1, 3, 4], range(1)])
def test_good_path(path: Any) -> None:
    grown([-1, -1, 0, 1, 3]).check_path(path)


@pytest.mark.parametrize("path", [[2], [0, 3], [0, 0], [1, 4], [0, 2, 5], [-1], [5], [1, 3, 4, 4]])
def test_bad_path(path: list[int]) -> None:
    with pytest.raises(ValueError, match=r"path was \[.*\]; each node must be"):
        grown([-1, -1, 0, 1, 3]).check_path(path)
