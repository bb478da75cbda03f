"""The slot cache: rollback is a length, a commit moves the slots out of place and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specbranch import ops
from specbranch.cache import SlotCache

SLOTS = 24


def filled(length: int) -> SlotCache:
    """A cache whose slots hold distinct numbers."""
    cache = SlotCache(
        layers=3,
        kv_heads=2,
        slots=SLOTS,
        head_dim=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    cache.data.copy_(torch.arange(cache.data.numel(), dtype=torch.float32).view_as(cache.data))
    cache.length = length
    return cache


def test_one_tensor_with_a_view_per_layer() -> None:
    cache = filled(0)
    assert cache.data.shape == (3, 2, 1, 2, SLOTS, 4)
    assert cache.nbytes == 3 * 2 * 2 * SLOTS * 4 * 4
    for idx, layer in enumerate(cache.layers):
        assert layer.data_ptr() == cache.data[idx].data_ptr()


@pytest.mark.parametrize(
    "path", [[0], [0, 1, 2], [3], [0, 2], [1, 4, 5], [0, 1, 7, 9], list(range(2, 10))], ids=str
)
@pytest.mark.parametrize("length", [0, 1, 13])
def test_commit(path: list[int], length: int) -> None:
    cache = filled(length)
    before = cache.data.clone()
    place = cache.data.data_ptr()
    cache.commit(path)
    assert cache.length == length + len(path)
    kept = list(range(length)) + [length + node for node in path]
    torch.testing.assert_close(cache.data[..., : cache.length, :], before[..., kept, :])
    torch.testing.assert_close(cache.data[..., cache.length :, :], before[..., cache.length :, :])
    assert cache.data.data_ptr() == place


def count_moves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Slots that each call of ``kv_commit`` moves from now on."""
    moves: list[int] = []
    move = ops.kv_commit

    def counted(cache: Any, sources: Any, start: Any, length: Any) -> None:
        moves.append(int(length[0]))
        move(cache, sources, start, length)

    monkeypatch.setattr(ops, "kv_commit", counted)
    return moves


@pytest.mark.parametrize(
    ("path", "expected"),
    [([], []), ([0], []), ([0, 1, 2, 3], []), ([0, 1, 5], [1]), ([2, 3], [2]), ([0, 2, 3], [2])],
)
def test_only_what_is_out_of_place_moves(
    path: list[int], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = count_moves(monkeypatch)
    filled(5).commit(path)
    assert moves == expected


def test_rollback_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    moves = count_moves(monkeypatch)
    cache = filled(10)
    before = cache.data.clone()
    for length in (10, 4, 4, 0):
        cache.rollback(length)
        assert cache.length == length
    assert torch.equal(cache.data, before) and moves == []


@pytest.mark.parametrize("length", [-1, 11])
def test_rollback_out_of_range(length: int) -> None:
    cache = filled(10)
    with pytest.raises(ValueError, match=rf"length was {length}; it must be in 0 \.\. 10"):
        cache.rollback(length)
    assert cache.length == 10
