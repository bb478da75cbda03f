"""The slot cache: what commit moves, and that nothing else changes."""

from __future__ import annotations

import random

import pytest
import torch

from specbranch import ops
from specbranch.cache import SlotCache


def filled(length: int = 5, slots: int = 64, dtype: torch.dtype = torch.float32) -> SlotCache:
    """A cache in which every slot holds a value of its own."""
    cache = SlotCache(
        layers=2, kv_heads=3, slots=slots, head_dim=4, dtype=dtype, device=torch.device("cpu")
    )
    torch.manual_seed(0)
    cache.data.copy_(torch.randn(cache.data.shape))
    cache.length = length
    return cache


def random_path(rng: random.Random) -> list[int]:
    return sorted(rng.sample(range(40), rng.randint(1, 12)))


PATHS = [
    [],
    [0],
    [0, 1, 2],
    [3],
    [0, 2, 3, 9],
    [1, 2, 3],
    *map(random_path, [random.Random(0)] * 8),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_commit_moves_the_path_behind_the_prefix(path: list[int], dtype: torch.dtype) -> None:
    cache = filled(dtype=dtype)
    before = cache.data.clone()
    cache.commit(path)
    assert cache.length == 5 + len(path)
    kept = before[..., [*range(5), *(5 + node for node in path)], :]
    assert torch.equal(cache.data[..., : cache.length, :], kept)
    behind = 5 + max(path, default=0) + 1
    assert torch.equal(cache.data[..., behind:, :], before[..., behind:, :])


def test_storage_stays() -> None:
    cache = filled()
    address, size = cache.data.data_ptr(), cache.nbytes
    assert size == 2 * 2 * 3 * 64 * 4 * 4
    cache.commit([0, 2, 5])
    cache.rollback(2)
    assert (cache.data.data_ptr(), cache.nbytes) == (address, size)


def test_rollback_moves_nothing() -> None:
    cache = filled()
    before = cache.data.clone()
    cache.rollback(5)
    cache.rollback(0)
    assert cache.length == 0
    assert torch.equal(cache.data, before)


@pytest.mark.parametrize("length", [-1, 6])
def test_wrong_rollback(length: int) -> None:
    cache = filled()
    with pytest.raises(ValueError, match=r"length was .* 0 \.\. 5"):
        cache.rollback(length)
    assert cache.length == 5


@pytest.mark.parametrize(
    ("path", "expected"),
    [([], []), ([0], []), ([0, 1, 2, 3], []), ([0, 1, 5], [1]), ([2, 3], [2]), ([0, 2, 3], [2])],
)
def test_only_what_is_out_of_place_moves(
    path: list[int], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[int] = []
    monkeypatch.setattr(ops, "kv_commit", lambda *given, backend: moves.append(given[3][0]))
    filled().commit(path)
    assert moves == expected
