"""Float64 references of the ops on the tree, the cache and around the matrix products, in NumPy.

Written from the formulas, loop by loop, with no regard for speed; they take and give float64 and
int arrays, never change their inputs, and share no code with the kernels.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.integer[Any]]
Bools: TypeAlias = npt.NDArray[np.bool_]


def tree_mask(parents: Ints) -> tuple[Bools, Ints]:
    """Which node sees which, ``[B, N, N]``, and the depths ``[B, N]``: walk up from every node."""
    batch, nodes = parents.shape
    visible = np.zeros((batch, nodes, nodes), bool)
    depth = np.full((batch, nodes), -1, np.int64)
    for b, start in np.ndindex(batch, nodes):
        node = start
        while node >= 0:
            visible[b, start, node] = True
            depth[b, start] += 1
            node = int(parents[b, node])
    return visible, depth


def tree_attention(
    q: Floats, layer: Floats, prefix_length: Ints, visible: Bools | None, scale: float
) -> Floats:
    """Attention of ``q [B, N, Hq, D]`` over ``layer [2, B, Hkv, S, D]``; None: causal."""
    batch, nodes, heads, _ = q.shape
    group = heads // layer.shape[2]
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(batch, nodes, heads):
        row = np.arange(nodes) <= i if visible is None else visible[b, i]
        prefix = int(prefix_length[b])
        slots = np.concatenate([np.arange(prefix), prefix + np.flatnonzero(row)])
        if len(slots) == 0:
            continue
        keys, values = layer[:, b, h // group, slots]
        scores = keys @ q[b, i, h] * scale
        weights = np.exp(scores - scores.max())
        out[b, i, h] = weights @ values / weights.sum()
    return out


def kv_write(key: Floats, value: Floats, slots: Ints, layer: Floats) -> Floats:
    """The layer after the write."""
    layer = layer.copy()
    for b, n in np.ndindex(*slots.shape):
        if slots[b, n] >= 0:
            layer[0, b, :, slots[b, n]] = key[b, n]
            layer[1, b, :, slots[b, n]] = value[b, n]
    return layer


def kv_commit(cache: Floats, source_slots: Ints, dst_start: Ints, length: Ints) -> Floats:
    """The cache ``[L, 2, B, Hkv, S, D]`` after the move, all sources read before any is written."""
    moved = cache.copy()
    for b in range(cache.shape[2]):
        count, start = int(length[b]), int(dst_start[b])
        sources = source_slots[b, :count]
        moved[:, :, b, :, start : start + count] = cache[:, :, b][..., sources, :]
    return moved  # type: ignore[no-any-return]


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """Over the last dimension."""
    out: Floats = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight
    return out


def rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Rotate-half of ``x [..., H, D]`` with ``cos, sin [..., D/2]``: a complex product."""
    low, high = np.split(x, 2, axis=-1)
    turned = (low + 1j * high) * (cos + 1j * sin)[..., None, :]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def rope_kv_write(
    qkv: Floats,
    cos_table: Floats,
    sin_table: Floats,
    positions: Ints,
    slots: Ints,
    layer: Floats,
    num_q_heads: int,
    q_norm: Floats | None = None,
    k_norm: Floats | None = None,
    eps: float = 1e-6,
) -> tuple[Floats, Floats]:
    """The rotated q ``[B, N, Hq, D]`` and the layer after the write."""
    batch, nodes, _ = qkv.shape
    heads = layer.shape[2]
    x = qkv.reshape(batch, nodes, num_q_heads + 2 * heads, layer.shape[-1])
    q, k, v = np.split(x, [num_q_heads, num_q_heads + heads], axis=2)
    q = q if q_norm is None else rms_norm(q, q_norm, eps)
    k = k if k_norm is None else rms_norm(k, k_norm, eps)
    cos, sin = cos_table[positions], sin_table[positions]
    return rotate(q, cos, sin), kv_write(rotate(k, cos, sin), v, slots, layer)


def silu_mul(gate_up: Floats) -> Floats:
    """``silu(gate) * up`` of ``[rows, 2F]``."""
    gate, up = np.split(gate_up, 2, axis=-1)
    with np.errstate(over="ignore"):
        out: Floats = gate / (1 + np.exp(-gate)) * up
    return out
