"""tree_mask against walking up from every node."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ops.arrays import Kind, on_device, random_parents, skip_numpy_on_device, values

from specbranch import ops
from specbranch.testing import oracles_cache as oracles

SIZES = [(1, 1), (1, 2), (3, 9), (2, 32), (2, 33), (1, 64), (1, 130), (1, 300), (1, 0), (0, 5)]


@pytest.mark.parametrize("library", ["torch", "numpy"])
@pytest.mark.parametrize(("batch", "nodes"), SIZES)
def test_matches_oracle(backend: str, library: str, batch: int, nodes: int) -> None:
    kind = Kind(library, "float32")
    skip_numpy_on_device(backend, kind)
    parents = random_parents(np.random.default_rng(nodes), batch, nodes)
    words = (nodes + 31) // 32
    bits, depth, given = on_device(
        backend, kind.garbage(batch, nodes, words), kind.garbage(batch, nodes), kind.ints(parents)
    )
    out = (bits, depth)
    mask = ops.tree_mask(given, out=out, backend=backend)
    assert mask.bits is out[0] and mask.depth is out[1]
    visible, depths = oracles.tree_mask(parents)
    np.testing.assert_array_equal(values(ops.dense_mask(mask.bits, nodes)), visible)
    np.testing.assert_array_equal(values(mask.depth), depths)
    # Bits beyond the last node are zero.
    padded = values(ops.dense_mask(mask.bits, words * 32))
    assert not padded[..., nodes:].any()
    allocated = ops.tree_mask(given, backend=backend)
    np.testing.assert_array_equal(values(allocated.bits), values(mask.bits))
    assert isinstance(allocated.depth, torch.Tensor) == (library == "torch")


@pytest.mark.parametrize("nodes", [31, 257, 600])
def test_chain(backend: str, nodes: int) -> None:
    """As deep as a tree can be."""
    (parents,) = on_device(backend, torch.arange(-1, nodes - 1, dtype=torch.int32)[None])
    bits, depth = ops.tree_mask(parents, backend=backend)
    dense = values(ops.dense_mask(bits, nodes))[0]
    np.testing.assert_array_equal(dense, np.tril(np.ones((nodes, nodes), bool)))
    np.testing.assert_array_equal(values(depth)[0], np.arange(nodes))


def test_too_many_nodes_for_a_block() -> None:
    parents = torch.full((1, 2049), -1, dtype=torch.int32)
    with pytest.raises(ValueError, match="parents had 2049 nodes, must have at most 2048 on this"):
        ops.tree_mask(parents, backend="simt")


def test_chain_and_branches() -> None:
    bits, depth = ops.tree_mask(np.array([[-1, 0, 1, 1, -1]], np.int32))
    assert bits[0, :, 0].tolist() == [0b1, 0b11, 0b111, 0b1011, 0b10000]
    assert depth[0].tolist() == [0, 1, 2, 2, 0]


@pytest.mark.parametrize("bad", [[0], [-2], [-1, 1], [-1, 5], [-1, 2, 0]])
@pytest.mark.parametrize("backend", ["cpu", "simt"])
def test_refuses_parents_that_are_not_before(bad: list[int], backend: Any) -> None:
    out = (torch.full((1, len(bad), 1), 7, dtype=torch.int32), torch.full((1, len(bad)), 7).int())
    with pytest.raises(
        ValueError, match=r"parents had -?\d at \[0, \d\], must be -1 or the index of"
    ):
        ops.tree_mask(torch.tensor([bad], dtype=torch.int32), out=out, backend=backend)
    assert (out[0] == 7).all() and (out[1] == 7).all(), "written to before the check"


def test_refuses_wrong_output() -> None:
    parents = torch.tensor([[-1, 0]], dtype=torch.int32)
    with pytest.raises(
        ValueError, match=r"out bits had shape \[1, 2, 2\], must be .* = \[1, 2, 1\]"
    ):
        ops.tree_mask(parents, out=(torch.zeros(1, 2, 2).int(), torch.zeros(1, 2).int()))
    with pytest.raises(ValueError, match="parents had shape"):
        ops.tree_mask(parents[0])
    with pytest.raises(TypeError, match="parents had dtype int64, must be int32"):
        ops.tree_mask(parents.long())
