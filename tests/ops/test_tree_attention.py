"""tree_attention against float64 softmax attention over the visible slots, one query at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ops.arrays import Kind, assert_close, random_parents, values

from specbranch import ops
from specbranch.testing import oracles_cache as oracles


class Case(NamedTuple):
    batch: int
    nodes: int
    q_heads: int
    kv_heads: int
    head_dim: int
    prefix: tuple[int, ...]
    spare: int = 3  # slots behind the tree


CASES = [
    Case(1, 1, 8, 4, 32, (300,)),
    Case(1, 9, 8, 4, 32, (300,)),
    Case(2, 5, 4, 4, 16, (0, 129)),
    Case(1, 33, 6, 2, 20, (127,)),
    Case(1, 70, 3, 1, 8, (60,), spare=0),
    Case(3, 4, 4, 2, 64, (1, 128, 255)),
    Case(1, 2, 2, 1, 128, (1000,)),
    Case(1, 3, 2, 2, 5, (17,), spare=0),
    Case(1, 1, 1, 1, 1, (0,)),
]
EMPTY = [Case(1, 0, 4, 2, 16, (5,)), Case(0, 3, 4, 2, 16, ()), Case(1, 3, 0, 2, 16, (5,))]


def make(case: Case, kind: Kind, seed: int = 0) -> tuple[Any, Any, Any, np.ndarray]:
    """q, a layer whose slots beyond the tree are NaN, prefix lengths, parents."""
    rng = np.random.default_rng(seed)
    slots = max(case.prefix, default=0) + case.nodes + case.spare
    q = rng.normal(size=(case.batch, case.nodes, case.q_heads, case.head_dim))
    layer = rng.normal(size=(2, case.batch, case.kv_heads, slots, case.head_dim))
    for b, prefix in enumerate(case.prefix):
        layer[:, b, :, prefix + case.nodes :] = np.nan
    parents = random_parents(rng, case.batch, case.nodes)
    return kind.floats(q), kind.floats(layer), kind.ints(case.prefix), parents


def check(
    out: Any, q: Any, layer: Any, prefix: Any, visible: Any, scale: float, kind: Kind
) -> None:
    expected = oracles.tree_attention(values(q), values(layer), values(prefix), visible, scale)
    # A weight's relative error is that of its exponent: |score| and D roundings; values are <= 6.
    score = np.abs(values(q)).sum(-1).max(initial=0) * 6 * scale
    assert_close(out, expected, kind, magnitude=6.0, terms=8 * (4 + score))


@pytest.mark.parametrize("case", [*CASES, *EMPTY], ids=str)
@pytest.mark.parametrize("masked", [True, False], ids=["tree", "causal"])
def test_matches_oracle(case: Case, kind: Kind, masked: bool) -> None:
    q, layer, prefix, parents = make(case, kind)
    bits = ops.tree_mask(kind.ints(parents)).bits if masked else None
    visible = oracles.tree_mask(parents)[0] if masked else None
    out = kind.poisoned(*q.shape)
    assert ops.tree_attention(q, layer, prefix, bits, out=out) is out
    check(out, q, layer, prefix, visible, case.head_dim**-0.5, kind)
    scaled = ops.tree_attention(q, layer, prefix, bits, scale=0.3)
    check(scaled, q, layer, prefix, visible, 0.3, kind)


def test_long_prefill() -> None:
    kind = Kind("torch", "float32")
    q, layer, prefix, _ = make(Case(1, 256, 4, 2, 32, (100,)), kind)
    out = ops.tree_attention(q, layer, prefix, None)
    check(out, q, layer, prefix, None, 32**-0.5, kind)


def test_strided_layers() -> None:
    """A layer of a batch slice of a cache, as the engine passes it."""
    kind = Kind("torch", "float32")
    q, layer, prefix, parents = make(CASES[2], kind)
    wide = torch.full((2, 4, 6, layer.shape[3] + 2, 16), float("nan"))
    wide[:, 1:3, ::2][:, :, :2, 1:-1] = layer[:, :, :2]
    layer4 = torch.cat([layer[:, :, :2], layer[:, :, :2]], 2)
    view = wide[:, 1:3, ::2][:, :, :2, 1:-1]
    bits = ops.tree_mask(kind.ints(parents)).bits
    strided = ops.tree_attention(q, view, prefix, bits)
    assert not view.is_contiguous()
    check(strided, q, layer4[:, :, :2], prefix, oracles.tree_mask(parents)[0], 0.25, kind)


def test_unseen_garbage_does_not_leak() -> None:
    """Slots of nodes that a query does not see may hold NaN."""
    kind = Kind("torch", "float32")
    q, layer, prefix, _ = make(Case(1, 3, 2, 1, 16, (4,)), kind)
    bits = kind.ints([[[0b001], [0b010], [0b100]]])
    expected = ops.tree_attention(q, layer, prefix, bits)
    layer[:, :, :, 4] = float("nan")
    out = ops.tree_attention(q, layer, prefix, bits)
    assert torch.equal(out[:, 1:], expected[:, 1:])
    assert out[:, 0].isnan().all(), "NaN that is seen must show"


@pytest.mark.parametrize("nodes", [4, 40])
def test_nodes_that_join_a_grown_tree(nodes: int) -> None:
    """The last 3 nodes of a tree, asked alone, give what they give with the whole tree."""
    kind = Kind("torch", "float32")
    q, layer, prefix, parents = make(Case(1, nodes, 4, 2, 16, (20,)), kind)
    bits = ops.tree_mask(kind.ints(parents)).bits
    whole = ops.tree_attention(q, layer, prefix, bits)
    last = ops.tree_attention(q[:, -3:].contiguous(), layer, prefix, bits[:, -3:].contiguous())
    torch.testing.assert_close(last, whole[:, -3:], rtol=0, atol=1e-6)
    visible = oracles.tree_mask(parents)[0]
    check(last, q[:, -3:], layer, prefix, visible[:, -3:], 0.25, kind)


def test_a_query_that_sees_nothing_gets_zeros() -> None:
    kind = Kind("torch", "float32")
    q, layer, _, _ = make(Case(1, 2, 2, 1, 16, (0,)), kind)
    out = kind.poisoned(*q.shape)
    ops.tree_attention(q, layer, kind.ints([0]), kind.ints([[[0], [0b11]]]), out=out)
    assert (out[:, 0] == 0).all() and out[:, 1].isfinite().all()


def test_large_scores() -> None:
    """No overflow: the maximum is subtracted, across blocks too."""
    kind = Kind("torch", "float32")
    q, layer, prefix, _ = make(Case(1, 2, 2, 1, 16, (400,)), kind)
    out = ops.tree_attention(q * 1e4, layer, prefix, None)
    expected = oracles.tree_attention(values(q * 1e4), values(layer), values(prefix), None, 0.25)
    np.testing.assert_allclose(values(out), expected, atol=2e-2)


def test_threads_give_the_same_bits() -> None:
    q, layer, prefix, _ = make(Case(2, 40, 8, 4, 64, (700, 300)), Kind("torch", "float32"))
    threads = torch.get_num_threads()
    many = ops.tree_attention(q, layer, prefix, None)
    torch.set_num_threads(1)
    try:
        assert torch.equal(ops.tree_attention(q, layer, prefix, None), many)
    finally:
        torch.set_num_threads(threads)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"prefix": [-1]}, ValueError, r"prefix_length had -1 at \[0\], must be in 0..7"),
    ({"prefix": [8]}, ValueError, r"prefix_length had 8 at \[0\], must be in 0..7 \(10 slots, 3"),
    ({"prefix": [1, 2]}, ValueError, r"prefix_length had shape \[2\], must be \[B\] = \[1\]"),
    ({"bits": torch.zeros(1, 2, 1).int()}, ValueError, "ancestor_bits had shape"),
    (
        {"bits": torch.tensor([[[1], [32], [31]]], dtype=torch.int32)},
        ValueError,
        r"ancestor_bits had 32 at \[0, 1, 0\], must be without bits for slots from 10 on",
    ),
    ({"bits": torch.tensor([[[1, 0], [2, 0], [4, 1]]]).int()}, ValueError, r"had 1 at \[0, 2, 1\]"),
    ({"bits": torch.zeros(1, 3, 1)}, TypeError, "ancestor_bits had dtype float32"),
    (
        {"q": torch.zeros(1, 3, 3, 8)},
        ValueError,
        "q had 3 heads, must have a multiple of the cache's 2",
    ),
    (
        {"q": torch.zeros(1, 3, 4, 8).half()},
        TypeError,
        "cache_layer had dtype float32, must be float16",
    ),
    ({"q": torch.zeros(1, 3, 4, 8).double()}, TypeError, "q had dtype float64, must be float32 or"),
    (
        {"q": torch.zeros(1, 4, 3, 8).transpose(1, 2)},
        ValueError,
        r"q had strides .* call .contiguous\(\)",
    ),
    ({"q": torch.zeros(1, 3, 4, 16)[..., ::2]}, ValueError, "q had strides"),
    (
        {"layer": torch.zeros(2, 1, 2, 10, 16)[..., ::2]},
        ValueError,
        "contiguous in its last dimension",
    ),
    ({"layer": torch.zeros(2, 2, 2, 10, 8)}, ValueError, "cache_layer had shape"),
    ({"out": torch.zeros(1, 3, 4, 7)}, ValueError, "out had shape"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {
        "q": torch.zeros(1, 3, 4, 8),
        "layer": torch.zeros(2, 1, 2, 10, 8),
        "prefix": [5],
        "bits": None,
        "out": None,
    }
    given |= change
    prefix = torch.tensor(given["prefix"], dtype=torch.int32)
    with pytest.raises(error, match=message):
        ops.tree_attention(given["q"], given["layer"], prefix, given["bits"], out=given["out"])
