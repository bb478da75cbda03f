"""tree_attention against float64 softmax attention over the visible slots, one query at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ops.arrays import (
    ROUNDING,
    Kind,
    assert_close,
    on_device,
    random_parents,
    skip_numpy_on_device,
    values,
)

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
    Case(2, 17, 4, 2, 80, (70, 3)),
    Case(1, 6, 8, 1, 96, (190,)),
    Case(1, 2, 2, 1, 300, (40,)),
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
    out: Any,
    q: Any,
    layer: Any,
    prefix: Any,
    visible: Any,
    scale: float,
    kind: Kind,
    backend: str = "cpu",
) -> None:
    expected = oracles.tree_attention(values(q), values(layer), values(prefix), visible, scale)
    # A weight's relative error is that of its exponent: |score| and D roundings; values are <= 6.
    score = np.abs(values(q)).sum(-1).max(initial=0) * 6 * scale
    terms = 8 * (4 + score)
    if backend != "cpu" and kind.dtype != "float32":
        # Weights are rounded too: the mean moves by that share of the values' mean distance from
        # it, sum_s p_s |v_s - out|, which is at most 2 here (1.13 sigma for normal values).
        terms += 2 / 6 * ROUNDING[kind.dtype] * 2**24
    assert_close(out, expected, kind, magnitude=6.0, terms=terms)


def attend(
    backend: str, q: Any, layer: Any, prefix: Any, bits: Any, scale: float | None = None
) -> Any:
    """Into a poisoned output."""
    out = q.copy() if isinstance(q, np.ndarray) else q.clone()
    out[...] = np.nan
    given = on_device(backend, q, layer, prefix, bits, out)
    result = ops.tree_attention(*given[:4], scale=scale, out=given[4], backend=backend)
    assert result is given[4]
    return result


@pytest.mark.parametrize("case", [*CASES, *EMPTY], ids=str)
@pytest.mark.parametrize("masked", [True, False], ids=["tree", "causal"])
def test_matches_oracle(backend: str, case: Case, kind: Kind, masked: bool) -> None:
    skip_numpy_on_device(backend, kind)
    q, layer, prefix, parents = make(case, kind)
    bits = ops.tree_mask(kind.ints(parents)).bits if masked else None
    visible = oracles.tree_mask(parents)[0] if masked else None
    out = attend(backend, q, layer, prefix, bits)
    check(out, q, layer, prefix, visible, case.head_dim**-0.5, kind, backend)
    scaled = attend(backend, q, layer, prefix, bits, scale=0.3)
    check(scaled, q, layer, prefix, visible, 0.3, kind, backend)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_long_prefill(backend: str, dtype: str) -> None:
    kind = Kind("torch", dtype)
    q, layer, prefix, _ = make(Case(1, 256, 4, 2, 32, (100,)), kind)
    out = attend(backend, q, layer, prefix, None)
    check(out, q, layer, prefix, None, 32**-0.5, kind, backend)


def plain_torch(q: Any, layer: Any, prefix: int, visible: Any) -> Any:
    """Plain PyTorch in the inputs' dtype, one batch row: every step is rounded to it."""
    group = q.shape[2] // layer.shape[2]
    nodes = q.shape[1]
    keys, content = (x[0, :, : prefix + nodes].repeat_interleave(group, 0) for x in layer)
    seen = torch.cat([torch.ones(nodes, prefix, dtype=torch.bool), torch.tensor(visible[0])], 1)
    scores = q[0].transpose(0, 1) @ keys.transpose(1, 2) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights @ content).transpose(0, 1)[None]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 72])
def test_error_is_at_most_twice_that_of_plain_torch(
    backend: str, dtype: str, head_dim: int
) -> None:
    kind = Kind("torch", dtype)
    q, layer, prefix, parents = make(Case(1, 9, 8, 2, head_dim, (230,), spare=0), kind)
    visible = oracles.tree_mask(parents)[0]
    scale = head_dim**-0.5
    exact = oracles.tree_attention(values(q), values(layer), values(prefix), visible, scale)
    bits = ops.tree_mask(kind.ints(parents)).bits
    error = np.abs(values(attend(backend, q, layer, prefix, bits)) - exact).max()
    plain = np.abs(values(plain_torch(q, layer, 230, visible)) - exact).max()
    # The floor is one rounding of the largest result: no dtype can promise better.
    floor = ROUNDING[dtype] * np.abs(exact).max()
    assert error <= 2 * plain + floor, (error, plain)


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("head_dim", [20, 32, 48, 128])
def test_a_row_has_its_bits_from_nobody_else(group: int, head_dim: int) -> None:
    """Rows share loads in parts of every size, and a chain must give what its tokens give alone."""
    kind = Kind("torch", "float32")
    q, layer, prefix, parents = make(Case(1, 35, 2 * group, 2, head_dim, (119,)), kind)
    bits = ops.tree_mask(kind.ints(parents)).bits
    chain = ops.tree_attention(q, layer, prefix, None)
    tree = ops.tree_attention(q, layer, prefix, bits)
    for first in range(20):
        count = min(first + 1, 35 - first)
        rows = slice(first, first + count)
        some = q[:, rows].contiguous()
        out = ops.tree_attention(some, layer, prefix + first, None)
        assert torch.equal(out, chain[:, rows]), f"{count} of a chain from {first}"
        out = ops.tree_attention(some, layer, prefix, bits[:, rows].contiguous())
        assert torch.equal(out, tree[:, rows]), f"{count} of a tree from {first}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strided_layers(backend: str, dtype: str) -> None:
    """A layer of a batch slice of a cache, as the engine passes it."""
    kind = Kind("torch", dtype)
    q, layer, prefix, parents = make(Case(2, 5, 4, 4, 32, (0, 129)), kind)
    wide = torch.full((2, 4, 6, layer.shape[3] + 2, 32), float("nan"), dtype=layer.dtype)
    wide[:, 1:3, ::2][:, :, :2, 1:-1] = layer[:, :, :2]
    layer4 = torch.cat([layer[:, :, :2], layer[:, :, :2]], 2)
    view = wide[:, 1:3, ::2][:, :, :2, 1:-1]
    if backend == "cuda":  # a copy would be contiguous: the view is made there
        view = wide.cuda()[:, 1:3, ::2][:, :, :2, 1:-1]
    bits = ops.tree_mask(kind.ints(parents)).bits
    strided = attend(backend, q[:, :, :2].contiguous(), view, prefix, bits)
    assert not view.is_contiguous()
    visible = oracles.tree_mask(parents)[0]
    check(strided, q[:, :, :2], layer4[:, :, :2], prefix, visible, 32**-0.5, kind, backend)


@pytest.mark.parametrize("shift", [0, 1, 8])
def test_caches_that_are_not_aligned(backend: str, shift: int) -> None:
    """Wide accesses are for caches that allow them."""
    kind = Kind("torch", "bfloat16")
    q, layer, prefix, parents = make(Case(1, 3, 2, 1, 64, (70,)), kind)
    wide = torch.full((*layer.shape[:4], 64 + shift), float("nan"), dtype=layer.dtype)
    wide[..., shift:] = layer
    bits = ops.tree_mask(kind.ints(parents)).bits
    given = on_device(backend, q, wide, prefix, bits)
    out = ops.tree_attention(given[0], given[1][..., shift:], *given[2:], backend=backend)
    check(out, q, layer, prefix, oracles.tree_mask(parents)[0], 0.125, kind, backend)


def test_strides_of_single_dimensions_do_not_matter() -> None:
    """They may be anything, so they must not send a cache to the slower kernel."""
    q, layer = torch.zeros(1, 1, 2, 64).half(), torch.zeros(2, 1, 1, 640, 64).half()
    odd = layer.as_strided(layer.shape, (640 * 64, 1, 3, 64, 1))
    workspaces = [ops.tree_attention_workspace(q, x) for x in (layer, odd)]
    assert workspaces[0].shape == workspaces[1].shape == (10 * 2 * 66 * 4,)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("nodes", [1, 3, 7, 20, 33])
def test_stale_slots_do_not_count(backend: str, nodes: int, dtype: str) -> None:
    """What is left of an older, larger tree behind this one; 4 to 132 query rows."""
    kind = Kind("torch", dtype)
    q, layer, prefix, parents = make(Case(1, nodes, 4, 1, 64, (90,), spare=40), kind)
    layer = layer.nan_to_num(1000.0)
    bits = torch.zeros(1, nodes, 3, dtype=torch.int32)
    mask = ops.tree_mask(kind.ints(parents)).bits
    bits[..., : mask.shape[-1]] = mask
    out = attend(backend, q, layer, prefix, bits)
    check(out, q, layer, prefix, oracles.tree_mask(parents)[0], 0.125, kind, backend)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("prefix", [4, 62])
def test_unseen_garbage_does_not_leak(backend: str, prefix: int, dtype: str, bad: float) -> None:
    """Slots of nodes that a query does not see may hold NaN."""
    kind = Kind("torch", dtype)
    q, layer, length, _ = make(Case(1, 3, 2, 1, 32, (prefix,)), kind)
    bits = kind.ints([[[0b001], [0b010], [0b100]]])
    expected = attend(backend, q, layer, length, bits)
    layer[:, :, :, prefix] = bad
    out = attend(backend, q, layer, length, bits)
    torch.testing.assert_close(out[:, 1:], expected[:, 1:], rtol=ROUNDING[dtype] * 4, atol=1e-6)
    assert not out[:, 0].isfinite().any(), "what is seen must show"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nan_in_the_prefix_shows(backend: str, dtype: str) -> None:
    kind = Kind("torch", dtype)
    q, layer, length, _ = make(Case(1, 3, 2, 1, 32, (200,)), kind)
    layer[0, 0, 0, 77] = float("nan")
    assert attend(backend, q, layer, length, None).isnan().all()


def test_lengths_on_the_device_share_out_the_work(backend: str) -> None:
    """One workspace and one shape, lengths from none to all: some splits get nothing."""
    kind = Kind("torch", "float16")
    q, layer, _, _ = make(Case(1, 2, 2, 1, 32, (640,), spare=0), kind)
    q, layer = on_device(backend, q, layer)
    emulated = backend != "cpu"
    workspace = ops.tree_attention_workspace(q, layer) if emulated else None
    assert (workspace is not None) == emulated
    for prefix in [0, 1, 62, 63, 64, 65, 129, 383, 640]:
        if workspace is not None:
            workspace.fill_(0xFF)  # NaN, whatever is not written shows
        (length,) = on_device(backend, torch.tensor([prefix], dtype=torch.int32))
        out = ops.tree_attention(q, layer, length, None, workspace=workspace, backend=backend)
        check(out, q, layer, length, None, 32**-0.5, kind, backend)


@pytest.mark.parametrize("nodes", [4, 40])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nodes_that_join_a_grown_tree(backend: str, nodes: int, dtype: str) -> None:
    """The last 3 nodes of a tree, asked alone, give what they give with the whole tree."""
    kind = Kind("torch", dtype)
    q, layer, prefix, parents = make(Case(1, nodes, 4, 2, 32, (20,)), kind)
    bits = ops.tree_mask(kind.ints(parents)).bits
    whole = attend(backend, q, layer, prefix, bits)
    tail = (q[:, -3:].contiguous(), layer, prefix, bits[:, -3:].contiguous())
    last = attend(backend, *tail)
    rounding = 0.0 if dtype == "float32" else ROUNDING[dtype]
    torch.testing.assert_close(last, whole[:, -3:], rtol=2 * rounding, atol=1e-6 + 2 * rounding)
    visible = oracles.tree_mask(parents)[0]
    check(last, q[:, -3:], layer, prefix, visible[:, -3:], 32**-0.5, kind, backend)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("spare", [3, 300], ids=["one split", "splits"])
def test_a_query_that_sees_nothing_gets_zeros(backend: str, dtype: str, spare: int) -> None:
    kind = Kind("torch", dtype)
    q, layer, _, _ = make(Case(1, 2, 2, 1, 32, (0,), spare), kind)
    out = attend(backend, q, layer, kind.ints([0]), kind.ints([[[0], [0b11]]]))
    assert (out[:, 0] == 0).all() and out[:, 1].isfinite().all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_large_scores(backend: str, dtype: str) -> None:
    """No overflow: the maximum is subtracted, across blocks too."""
    kind = Kind("torch", dtype)
    q, layer, prefix, _ = make(Case(1, 2, 2, 1, 32, (400,)), kind)
    out = attend(backend, q * 1e4, layer, prefix, None, scale=0.25)
    expected = oracles.tree_attention(values(q * 1e4), values(layer), values(prefix), None, 0.25)
    np.testing.assert_allclose(values(out), expected, atol=2e-2, rtol=ROUNDING[dtype])


def test_bad_workspace_and_too_wide_heads() -> None:
    kind = Kind("torch", "float16")
    q, layer, prefix, _ = make(Case(1, 2, 2, 1, 32, (400,)), kind)
    small = torch.empty(100, dtype=torch.uint8)
    with pytest.raises(ValueError, match="workspace had 100 bytes, must have"):
        ops.tree_attention(q, layer, prefix, None, workspace=small, backend="simt")
    q, layer, prefix, _ = make(Case(1, 1, 1, 1, 520, (2,)), kind)
    with pytest.raises(ValueError, match="q had heads of 520 elements, must have at most 512"):
        ops.tree_attention(q, layer, prefix, None, backend="simt")


def test_threads_give_the_same_bits() -> None:
    q, layer, prefix, _ = make(Case(2, 40, 8, 4, 64, (700, 300)), Kind("torch", "float32"))
    with ops.limit_threads(1):
        alone = ops.tree_attention(q, layer, prefix, None)
    with ops.limit_threads(3):
        assert torch.equal(ops.tree_attention(q, layer, prefix, None), alone)


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
@pytest.mark.parametrize("backend", ["cpu", "simt"])
def test_bad_input(
    change: dict[str, Any], error: type[Exception], message: str, backend: Any
) -> None:
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
        ops.tree_attention(
            given["q"], given["layer"], prefix, given["bits"], out=given["out"], backend=backend
        )
