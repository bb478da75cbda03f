"""kv_write: exact copies, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ops.arrays import Kind, on_device, skip_numpy_on_device, values

from specbranch import ops
from specbranch.testing import oracles_cache as oracles

SIZES = [
    (1, 1, 4, 32, 20),
    (2, 9, 2, 16, 40),
    (1, 33, 1, 5, 33),
    (2, 3, 2, 6, 9),
    (1, 0, 2, 8, 4),
    (0, 3, 2, 8, 4),
]


@pytest.mark.parametrize(("batch", "nodes", "heads", "dim", "slots"), SIZES)
def test_matches_oracle(
    backend: str, kind: Kind, batch: int, nodes: int, heads: int, dim: int, slots: int
) -> None:
    skip_numpy_on_device(backend, kind)
    rng = np.random.default_rng(0)
    key, value = (kind.floats(rng.normal(size=(batch, nodes, heads, dim))) for _ in range(2))
    layer = kind.floats(rng.normal(size=(2, batch, heads, slots, dim)))
    where = np.array([rng.permutation(slots)[:nodes] for _ in range(batch)], np.int32)
    where = where.reshape(batch, nodes)
    where[:, 1::4] = -1
    expected = oracles.kv_write(values(key), values(value), where, values(layer))
    key, value, slot, layer = on_device(backend, key, value, kind.ints(where), layer)
    ops.kv_write(key, value, slot, layer, backend=backend)
    np.testing.assert_array_equal(values(layer), expected)


@pytest.mark.parametrize("spare", [0, 1, 2], ids="spare {}".format)
def test_writes_into_one_layer_of_a_cache(backend: str, spare: int) -> None:
    """Of a cache whose rows are longer than a head, so that wide accesses may not be aligned."""
    (cache,) = on_device(backend, torch.zeros(3, 2, 1, 2, 6, 8 + spare, dtype=torch.float16))
    key = torch.full((1, 1, 2, 8), 1.0, dtype=torch.float16)
    key, value, slot = on_device(backend, key, 2 * key, torch.tensor([[5]], dtype=torch.int32))
    ops.kv_write(key, value, slot, cache[1, ..., spare:], backend=backend)
    layer = cache[1, ..., spare:]
    assert layer[0, 0, :, 5].eq(1).all() and layer[1, 0, :, 5].eq(2).all()
    assert cache.sum() == 2 * 8 * 3


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"slots": [[0, 6]]},
        ValueError,
        r"slots had 6 at \[0, 1\], must be -1 \(skip\) or a slot in 0..5",
    ),
    ({"slots": [[-2, 0]]}, ValueError, r"slots had -2 at \[0, 0\]"),
    ({"slots": [[1]]}, ValueError, r"slots had shape \[1, 1\], must be \[B, N\] = \[1, 2\]"),
    ({"value": torch.zeros(1, 2, 2, 3)}, ValueError, "value had shape"),
    (
        {"value": torch.zeros(1, 2, 2, 4).half()},
        TypeError,
        "value had dtype float16, must be float32",
    ),
    (
        {"layer": torch.zeros(2, 1, 2, 1, 4).expand(2, 1, 2, 6, 4)},
        ValueError,
        "cache_layer had strides",
    ),
    ({"layer": torch.zeros(2, 1, 3, 6, 4)}, ValueError, "cache_layer had shape"),
    ({"key": [1.0]}, TypeError, "key was list, must be a torch tensor or a NumPy array"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
@pytest.mark.parametrize("backend", ["cpu", "simt"])
def test_bad_input(
    change: dict[str, Any], error: type[Exception], message: str, backend: Any
) -> None:
    layer = torch.zeros(2, 1, 2, 6, 4)
    given: dict[str, Any] = {
        "key": torch.ones(1, 2, 2, 4),
        "value": torch.ones(1, 2, 2, 4),
        "slots": [[0, 1]],
        "layer": layer,
    }
    given |= change
    slots = torch.tensor(given["slots"], dtype=torch.int32)
    with pytest.raises(error, match=message):
        ops.kv_write(given["key"], given["value"], slots, given["layer"], backend=backend)
    assert (layer == 0).all(), "written to before the check"
