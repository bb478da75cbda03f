"""rope_kv_write against complex multiplication in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ops.arrays import Kind, assert_close, on_device, skip_numpy_on_device, values

from specbranch import ops
from specbranch.testing import oracles_cache as oracles


class Case(NamedTuple):
    batch: int
    nodes: int
    q_heads: int
    kv_heads: int
    dim: int
    normed: bool


CASES = [
    Case(1, 1, 8, 4, 32, False),
    Case(2, 9, 4, 2, 64, True),
    Case(1, 33, 2, 1, 16, True),
    Case(1, 5, 3, 3, 6, False),
    Case(1, 7, 2, 2, 40, True),
    Case(1, 5, 2, 1, 128, True),
    Case(1, 2, 2, 1, 130, True),
    Case(1, 256, 4, 2, 32, False),
    Case(1, 0, 4, 2, 16, False),
    Case(0, 3, 4, 2, 16, True),
]
POSITIONS = 50


def tables(dim: int) -> tuple[np.ndarray, np.ndarray]:
    angle = np.arange(POSITIONS)[:, None] * 100.0 ** (-np.arange(0, dim, 2) / dim)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_oracle(backend: str, kind: Kind, case: Case) -> None:
    skip_numpy_on_device(backend, kind)
    rng = np.random.default_rng(0)
    slots = case.nodes + 6
    heads = case.q_heads + 2 * case.kv_heads
    qkv = kind.floats(rng.normal(size=(case.batch, case.nodes, heads * case.dim)))
    layer = kind.floats(rng.normal(size=(2, case.batch, case.kv_heads, slots, case.dim)))
    cos, sin = tables(case.dim)
    positions = rng.integers(0, POSITIONS, (case.batch, case.nodes))
    where = np.array([rng.permutation(slots)[: case.nodes] for _ in range(case.batch)])
    where = where.reshape(case.batch, case.nodes)
    where[:, 2::5] = -1
    norms = [kind.floats(rng.normal(size=case.dim)) if case.normed else None for _ in range(2)]
    floats = [None if n is None else values(n) for n in norms]
    want_q, want_layer = oracles.rope_kv_write(
        values(qkv), cos, sin, positions, where, values(layer), case.q_heads, *floats, 1e-5
    )
    tables_of = (kind.floats(cos, "float32"), kind.floats(sin, "float32"))
    where_of = (kind.ints(positions), kind.ints(where))
    out = kind.poisoned(case.batch, case.nodes, case.q_heads, case.dim)
    *args, layer, q_norm, k_norm, out = on_device(
        backend, qkv, *tables_of, *where_of, layer, *norms, out
    )
    q = ops.rope_kv_write(
        *args,
        layer,
        case.q_heads,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=1e-5,
        out=out,
        backend=backend,
    )
    assert q is out
    assert_close(q, want_q, kind, magnitude=20.0, terms=8)
    assert_close(layer, want_layer, kind, magnitude=20.0, terms=8)
    # v and the slots that are not written to are exact.
    np.testing.assert_array_equal(values(layer)[1], want_layer[1])


def given_arguments() -> dict[str, Any]:
    cos, sin = tables(8)
    return {
        "qkv": torch.ones(1, 2, 8 * 8),
        "cos": torch.from_numpy(cos),
        "sin": torch.from_numpy(sin),
        "positions": torch.tensor([[0, 1]], dtype=torch.int32),
        "slots": torch.tensor([[0, 1]], dtype=torch.int32),
        "layer": torch.zeros(2, 1, 2, 6, 8),
        "heads": 4,
    }


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"positions": torch.tensor([[0, 50]]).int()},
        ValueError,
        r"positions had 50 at \[0, 1\], .* 0..49",
    ),
    ({"positions": torch.tensor([[-1, 0]]).int()}, ValueError, r"positions had -1 at \[0, 0\]"),
    ({"positions": torch.tensor([[0, 1]])}, TypeError, "positions had dtype int64, must be int32"),
    ({"slots": torch.tensor([[0, 6]]).int()}, ValueError, r"slots had 6 at \[0, 1\]"),
    ({"heads": 5}, ValueError, r"qkv had shape \[1, 2, 64\], must be .* = \[1, 2, 72\]"),
    ({"heads": -1}, ValueError, "num_q_heads was -1"),
    ({"cos": torch.zeros(50, 8)}, ValueError, r"cos_table had shape \[50, 8\]"),
    ({"sin": torch.zeros(49, 4)}, ValueError, "sin_table had shape"),
    ({"cos": torch.zeros(50, 4).half()}, TypeError, "cos_table had dtype float16, must be float32"),
    ({"layer": torch.zeros(2, 1, 2, 6, 7)}, ValueError, "cache_layer had heads of 7 elements"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
@pytest.mark.parametrize("backend", ["cpu", "simt"])
def test_bad_input(
    change: dict[str, Any], error: type[Exception], message: str, backend: Any
) -> None:
    given = given_arguments() | change
    with pytest.raises(error, match=message):
        ops.rope_kv_write(*given.values(), backend=backend)
    assert (given["layer"] == 0).all(), "written to before the check"


def test_bad_norm_and_output() -> None:
    given = given_arguments()
    with pytest.raises(ValueError, match=r"k_norm had shape \[4\], must be \[D\] = \[8\]"):
        ops.rope_kv_write(*given.values(), k_norm=torch.ones(4))
    with pytest.raises(ValueError, match="out had shape"):
        ops.rope_kv_write(*given.values(), out=torch.ones(1, 2, 4, 4))
