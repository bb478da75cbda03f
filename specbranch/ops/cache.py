"""Moving keys and values in the slot cache."""

from __future__ import annotations

from specbranch import _C
from specbranch.ops._common import Backend, TensorLike


def kv_write(
    key: TensorLike,
    value: TensorLike,
    slots: TensorLike,
    cache_layer: TensorLike,
    *,
    backend: Backend | None = None,
    stream: int | None = None,
) -> None:
    """Writes the keys and values of N new tokens into their slots of one layer of the cache.

    Args:
        key, value: ``[B, N, Hkv, D]`` float32, bfloat16 or float16.
        slots: ``[B, N]`` int32, each in ``-1 .. S - 1``; -1 skips the token.
        cache_layer: ``[2, B, Hkv, S, D]`` of the same dtype, written in place; only its last
            dimension must be contiguous.
        backend, stream: as for `kv_commit`. On "cuda" a slot outside ``-1 .. S - 1`` is skipped.

    Raises:
        ValueError, TypeError: an argument does not fit; nothing has been written then.
        RuntimeError: the backend is not compiled in, or there is no driver.
    """
    _C.kv_write(key, value, slots, cache_layer, backend, stream)


def kv_commit(
    cache: TensorLike,
    source_slots: TensorLike,
    dst_start: TensorLike,
    length: TensorLike,
    *,
    backend: Backend | None = None,
    stream: int | None = None,
) -> None:
    """Makes the slots of the kept path contiguous: all layers, keys and values, in one call.

    Slot ``source_slots[b, i]`` moves to ``dst_start[b] + i`` for ``i < length[b]``. The sources
    ascend strictly and ``source_slots[b, i] >= dst_start[b] + i``, so that moving them in order
    overwrites nothing that is still needed. Slots that are moved from keep their content.

    Args:
        cache: ``[L, 2, B, Hkv, S, D]``, contiguous, changed in place.
        source_slots: ``[B, M]`` int32.
        dst_start, length: ``[B]`` int32.
        backend: "cpu", "simt" (the CUDA kernel emulated on the CPU; ":reverse" and
            ":random" name other orders of its threads) or "cuda"; by default that of
            the cache's device. On "cuda" the index tensors are on the device too, the values are
            not checked (the host does not wait).
        stream: CUDA stream to launch on, as an integer; by default the one that is current in
            the cache's library.

    Raises:
        ValueError, TypeError: an argument does not fit; nothing has been written then.
        RuntimeError: the backend is not compiled in, or there is no driver.

    Forking copies nothing and keeping a branch moves few slots: the tree cache of SpecInfer
    (Miao et al., 2024, https://arxiv.org/abs/2305.09781), without its separate token-tree buffers.
    """
    _C.kv_commit(cache, source_slots, dst_start, length, backend, stream)
