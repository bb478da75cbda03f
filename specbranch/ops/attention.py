"""Attention over a slot cache: what a node of a tree may see, and the attention itself."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from specbranch import _C
from specbranch.ops._common import Backend, TensorLike, new, new_like, runs_kernels, shape_of


class TreeMask(NamedTuple):
    """Ancestors and depth of every node of a tree."""

    bits: TensorLike  #: [B, N, ceil(N / 32)] int32; bit j of row i: j is i or an ancestor of i
    depth: TensorLike  #: [B, N] int32; 0 for children of the root


def tree_mask(
    parents: TensorLike,
    *,
    out: tuple[TensorLike, TensorLike] | None = None,
    backend: Backend | None = None,
    stream: int | None = None,
) -> TreeMask:
    """Packed ancestor bits and depth of the nodes of a speculation tree.

    Args:
        parents: ``[B, N]`` int32; -1 for a child of the root, else the index of an earlier node.
        out: ``(bits, depth)`` to be filled.
        backend, stream: as for `kv_commit`. On "cuda" a parent that is not before its child counts
            as -1.

    Raises:
        ValueError: a parent is not before its child, a shape does not fit, or N > 2048 on another
            backend than "cpu".
        TypeError: a wrong dtype or object.
        RuntimeError: the backend is not compiled in, or there is no driver.

    Tree attention masks are those of SpecInfer (Miao et al., 2024, https://arxiv.org/abs/2305.09781).
    """
    if out is None:
        batch, nodes = shape_of(parents, "parents", "[B, N]")
        bits = new(parents, (batch, nodes, (nodes + 31) // 32), "int32")
        out = (bits, new(parents, (batch, nodes), "int32"))
    _C.tree_mask(parents, out[0], out[1], backend, stream)
    return TreeMask(*out)


def dense_mask(bits: TensorLike, num_nodes: int) -> TensorLike:
    """Ancestor bits ``[B, N, W]`` as booleans ``[B, N, num_nodes]``: may node i see node j?"""
    if isinstance(bits, torch.Tensor):
        columns = torch.arange(num_nodes, device=bits.device)
        return (bits[..., columns // 32] >> (columns % 32) & 1).bool()
    indices = np.arange(num_nodes)
    return (bits[..., indices // 32] >> (indices % 32) & 1).astype(bool)


def tree_attention_workspace(q: TensorLike, cache_layer: TensorLike) -> TensorLike | None:
    """Scratch memory that `tree_attention` wants for such arguments on "cuda" and "simt".

    Its size depends on shapes, dtype and alignment, never on lengths, and its content on nothing:
    one workspace serves all layers of a model, one after the other.

    Args:
        q: ``[B, N, Hq, D]``.
        cache_layer: ``[2, B, Hkv, S, D]``.

    Returns:
        ``[bytes]`` uint8 on q's device; None: none is wanted.

    Raises:
        ValueError, TypeError: an argument does not fit.
    """
    size = _C.tree_attention_workspace_bytes(q, cache_layer)
    return new(q, (size,), "uint8") if size else None


def tree_attention(
    q: TensorLike,
    cache_layer: TensorLike,
    prefix_length: TensorLike,
    ancestor_bits: TensorLike | None,
    *,
    scale: float | None = None,
    out: TensorLike | None = None,
    workspace: TensorLike | None = None,
    backend: Backend | None = None,
    stream: int | None = None,
) -> TensorLike:
    """Softmax attention of N new tokens over one layer of the slot cache.

    Query i of row b sees the slots ``0 .. prefix_length[b] - 1`` and, of the tree slots
    ``prefix_length[b] + j``, its ancestors and itself. Query heads share key-value heads in groups
    of ``Hq / Hkv``. Sums are float32.

    Args:
        q: ``[B, N, Hq, D]`` float32, bfloat16 or float16, contiguous.
        cache_layer: ``[2, B, Hkv, S, D]`` keys, then values, of q's dtype; a view of one layer of
            the cache; only the last dimension must be contiguous.
        prefix_length: ``[B]`` int32, with ``prefix_length[b] + N <= S``.
        ancestor_bits: ``[B, N, ceil(T / 32)]`` int32, bits of T tree slots: those of `tree_mask`,
            or of a tree that has grown before these N nodes; None: causal, query i sees tree
            slots ``0 .. i``.
        scale: factor on the scores, default ``1 / sqrt(D)``.
        out: ``[B, N, Hq, D]`` to be filled.
        workspace: of `tree_attention_workspace`; one is made where needed and not given.
        backend, stream: as for `kv_commit`. On "cuda" a prefix that does not fit is cut to the
            cache. The kernels take heads of at most 512 elements; bfloat16 and float16 with D of
            32, 64, 80, 96 or 128 and aligned to 16 bytes run on tensor cores, where the weights are
            rounded to that dtype.

    Raises:
        ValueError, TypeError: an argument does not fit; nothing has been written then.
        RuntimeError: the backend is not compiled in, or there is no driver.

    Computed block by block with a running maximum, as in Milakov and Gimelshein,
    "Online normalizer calculation for softmax" (2018), https://arxiv.org/abs/1805.02867; split over
    the slots as in Flash-Decoding (Dao et al., 2023, https://pytorch.org/blog/flash-decoding/).
    """
    if scale is None:
        scale = q.shape[-1] ** -0.5
    if out is None:
        out = new_like(q, shape_of(q, "q", "[B, N, Hq, D]"))
    if workspace is None and runs_kernels(backend, q):
        workspace = tree_attention_workspace(q, cache_layer)
    _C.tree_attention(
        q, cache_layer, prefix_length, ancestor_bits, scale, out, workspace, backend, stream
    )
    return out
