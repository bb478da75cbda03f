"""The speculation tree against a naive walk up the parents."""

from __future__ import annotations

import random

import numpy as np
import pytest

from specbranch.tree import SpeculationTree


def naive_bits(parents: list[int]) -> np.ndarray:
    """``[N, N]`` bool: what each node sees, by walking up."""
    seen = np.zeros((len(parents), len(parents)), dtype=bool)
    for node in range(len(parents)):
        above = node
        while above >= 0:
            seen[node, above] = True
            above = parents[above]
    return seen


def unpack(bits: np.ndarray, width: int) -> np.ndarray:
    shifts = np.arange(32, dtype=np.uint32)
    spread = bits.view(np.uint32)[:, :, None] >> shifts & 1
    return spread.reshape(len(bits), -1)[:, :width].astype(bool)


@pytest.mark.parametrize("nodes", [1, 2, 31, 32, 33, 64, 65, 100])
@pytest.mark.parametrize("seed", range(4))
def test_bits_of_random_trees(nodes: int, seed: int) -> None:
    rng = random.Random(seed)
    parents = [rng.randint(max(-1, idx - rng.choice([1, 3, 99])), idx - 1) for idx in range(nodes)]
    tree, added = SpeculationTree(nodes), 0
    expected = naive_bits(parents)
    while added < nodes:
        count = rng.randint(1, nodes - added)
        tree.grow(count, parents[added : added + count])
        got = tree.bits(added)
        added += count
        assert got.dtype == np.int32 and got.shape == (count, (added + 31) // 32)
        full = unpack(got, 32 * got.shape[1])
        assert (full[:, :added] == expected[added - count : added, :added]).all()
        assert not full[:, added:].any(), "bits behind the last node"
    assert tree.depths == [int(row.sum()) - 1 for row in expected]
    assert tree.is_chain == (parents == list(range(-1, nodes - 1)))


def test_a_chain_goes_on_from_the_last_node() -> None:
    tree = SpeculationTree(8)
    tree.grow(2)
    assert tree.is_chain
    tree.grow(1, [0])
    tree.grow(2)
    assert tree.parents == [-1, 0, 0, 2, 3]
    assert not tree.is_chain


@pytest.mark.parametrize("parents", [[2], [3], [-2], [0, 3], [-1, 4]])
def test_a_parent_must_come_before(parents: list[int]) -> None:
    tree = SpeculationTree(8)
    tree.grow(2)
    with pytest.raises(ValueError, match="parents of node"):
        tree.grow(len(parents), parents)
    assert tree.parents == [-1, 0]


def test_too_many_nodes_and_wrong_counts() -> None:
    tree = SpeculationTree(3)
    with pytest.raises(ValueError, match="at most 3"):
        tree.grow(4)
    tree.grow(2)
    with pytest.raises(ValueError, match="at most 3"):
        tree.grow(2)
    with pytest.raises(ValueError, match="parents had 2 entries"):
        tree.grow(1, [0, 1])
    assert len(tree) == 2


@pytest.mark.parametrize("path", [[1], [0, 3], [0, 0], [0, 1, 2], [-1], [0, 1, 4]])
def test_wrong_paths(path: list[int]) -> None:
    tree = SpeculationTree(8)
    tree.grow(4, [-1, 0, 0, 2])
    with pytest.raises(ValueError, match="path was"):
        tree.check_path(path)


@pytest.mark.parametrize("path", [[], [0], [0, 1], [0, 2, 3]])
def test_right_paths(path: list[int]) -> None:
    tree = SpeculationTree(8)
    tree.grow(4, [-1, 0, 0, 2])
    tree.check_path(path)


def test_truncate_and_clear() -> None:
    tree = SpeculationTree(8)
    tree.grow(4, [-1, 0, 0, 2])
    tree.truncate(2)
    assert (tree.parents, tree.depths, len(tree)) == ([-1, 0], [0, 1], 2)
    tree.grow(2)
    assert tree.parents == [-1, 0, 1, 2]
    tree.clear()
    assert len(tree) == 0 and tree.is_chain
    tree.grow(3, [-1, 0, 0])
    assert not tree.is_chain
    tree.truncate(2)
    assert tree.is_chain


@pytest.mark.parametrize("parents", [[0, 1.0], [None]])
def test_refused_parents_leave_the_tree_alone(parents: list[int]) -> None:
    tree = SpeculationTree(8)
    tree.grow(2, [-1, -1])
    before = tree.bits(0).copy()
    with pytest.raises(TypeError, match=r"parents was \[.*\]; it must hold integers"):
        tree.grow(len(parents), parents)
    assert (tree.parents, tree.depths) == ([-1, -1], [0, 0])
    assert (tree.bits(0) == before).all()
