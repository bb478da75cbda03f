"""kv_commit on every backend: exact moves, and nothing else is touched."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ops.arrays import Kind, on_device, skip_numpy_on_device, values

from specbranch import _C, ops
from specbranch.testing import oracles_cache as oracles


class Case(NamedTuple):
    layers: int
    batch: int
    tokens: int
    heads: int
    slots: int
    dim: int


CASES = [
    Case(1, 1, 1, 1, 8, 4),
    Case(6, 1, 8, 4, 64, 32),
    Case(2, 3, 5, 2, 40, 64),
    Case(2, 2, 33, 1, 80, 20),  # rows of 4-byte units in float16
    Case(1, 2, 4, 3, 20, 7),  # odd rows
    Case(3, 1, 0, 2, 8, 16),
    Case(1, 0, 4, 2, 8, 16),
    Case(0, 1, 4, 2, 8, 16),
]


def random_path(rng: np.random.Generator, case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sources, start and length: short paths, whole ones, and ones that are partly in place."""
    sources = np.full((case.batch, case.tokens), -77, np.int32)  # garbage beyond the length
    start, length = np.zeros(case.batch, np.int32), np.zeros(case.batch, np.int32)
    for b in range(case.batch):
        length[b] = rng.integers(0, case.tokens + 1) if b else case.tokens
        start[b] = rng.integers(0, case.slots - case.tokens)
        free = np.arange(start[b], case.slots)
        chosen = np.sort(rng.choice(free, length[b], replace=False))
        sources[b, : length[b]] = chosen
    return sources, start, length


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_matches_oracle(backend: str, kind: Kind, case: Case, seed: int) -> None:
    skip_numpy_on_device(backend, kind)
    rng = np.random.default_rng(seed)
    shape = (case.layers, 2, case.batch, case.heads, case.slots, case.dim)
    cache = kind.floats(rng.normal(size=shape))
    path = random_path(rng, case)
    expected = oracles.kv_commit(values(cache), *path)
    cache, *indices = on_device(backend, cache, *(kind.ints(p) for p in path))
    ops.kv_commit(cache, *indices, backend=backend)
    np.testing.assert_array_equal(values(cache), expected)


def test_default_backend_is_that_of_the_device() -> None:
    cache = torch.arange(16.0).reshape(1, 2, 1, 1, 4, 2).contiguous()
    indices = [torch.tensor(x, dtype=torch.int32) for x in ([[2, 3]], [0], [2])]
    ops.kv_commit(cache, *indices)
    assert cache[0, 0, 0, 0].tolist() == [[4, 5], [6, 7], [4, 5], [6, 7]]


BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"sources": [[4, 8]]},
        r"source_slots had 8 at \[0, 1\], must be below 8, the number of slots",
    ),
    ({"sources": [[1, 5]]}, r"source_slots had 1 at \[0, 0\], must be at least dst_start \+ 0"),
    ({"sources": [[5, 5]]}, r"source_slots had 5 at \[0, 1\], must be above the one before it"),
    ({"length": [3]}, r"length had 3 at \[0\], must be in 0..2"),
    ({"length": [-1]}, r"length had -1 at \[0\]"),
    ({"start": [-1]}, r"dst_start had -1 at \[0\], must be in 0..6"),
    ({"start": [7]}, r"dst_start had 7 at \[0\]"),
    ({"start": [1, 2]}, r"dst_start had shape \[2\]"),
    ({"backend": "tpu"}, 'backend was "tpu", must be "cpu"'),
]


@pytest.mark.parametrize(("change", "message"), BAD)
@pytest.mark.parametrize("backend", ["cpu", "simt"])
def test_bad_input(change: dict[str, Any], message: str, backend: str) -> None:
    given = {"sources": [[4, 6]], "start": [2], "length": [2], "backend": backend} | change
    cache = torch.randn(1, 2, 1, 1, 8, 4)
    before = cache.clone()
    indices = [torch.tensor(given[n], dtype=torch.int32) for n in ("sources", "start", "length")]
    with pytest.raises(ValueError, match=message):
        ops.kv_commit(cache, *indices, backend=given["backend"])
    assert torch.equal(cache, before), "written to before the check"


def test_strided_cache_is_refused() -> None:
    indices = [torch.tensor(x, dtype=torch.int32) for x in ([[2]], [0], [1])]
    with pytest.raises(ValueError, match="cache had strides"):
        ops.kv_commit(torch.zeros(1, 2, 1, 4, 2, 4).transpose(3, 4), *indices)


def test_cuda_on_a_machine_without_it_says_so() -> None:
    if torch.cuda.is_available() and ops.backends()["cuda"]:
        pytest.skip("this machine has a GPU")
    indices = [torch.tensor(x, dtype=torch.int32) for x in ([[2]], [0], [1])]
    expected = "no NVIDIA driver found" if _C.build_info()["cuda"] else "is not in this build"
    with pytest.raises(RuntimeError, match=expected):
        ops.kv_commit(torch.zeros(1, 2, 1, 1, 4, 4), *indices, backend="cuda")
