"""The fused steps of a transformer layer around its matrix products."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from specbranch import _C
from specbranch.ops._common import Backend, TensorLike, new_like, shape_of

PANEL = 64  # outputs of a packed weight that lie together
SCALE_ROWS = 4  # of a panel of int8, behind its weights: 64 float32
BLOCK_ELEMENTS = 1 << 20  # of a weight, packed at once


def rope_kv_write(
    qkv: TensorLike,
    cos_table: TensorLike,
    sin_table: TensorLike,
    positions: TensorLike,
    slots: TensorLike,
    cache_layer: TensorLike,
    num_q_heads: int,
    *,
    q_norm: TensorLike | None = None,
    k_norm: TensorLike | None = None,
    eps: float = 1e-6,
    out: TensorLike | None = None,
    backend: Backend | None = None,
    stream: int | None = None,
) -> TensorLike:
    """Splits the projected q, k, v of N tokens, rotates q and k, and writes k and v to the cache.

    Rotation pairs element i with ``i + D/2`` (the "rotate half" layout of Llama); where `q_norm` or
    `k_norm` is given, each head is divided by its root mean square and scaled first (Qwen3).

    Args:
        qkv: ``[B, N, (Hq + 2 Hkv) * D]`` float32, bfloat16 or float16.
        cos_table, sin_table: ``[P, D/2]`` float32, a row per position.
        positions: ``[B, N]`` int32, rows of the tables.
        slots: ``[B, N]`` int32 in ``-1 .. S - 1``; -1: the token's k and v are not kept.
        cache_layer: ``[2, B, Hkv, S, D]``, written in place.
        num_q_heads: Hq.
        q_norm, k_norm: ``[D]`` weights of qkv's dtype.
        eps: added to the mean square.
        out: ``[B, N, Hq, D]`` to be filled with the rotated q.
        backend, stream: as for `kv_commit`. On "cuda" a position outside the tables gives NaN, a
            slot outside ``-1 .. S - 1`` is skipped.

    Returns:
        The rotated q ``[B, N, Hq, D]``.

    Raises:
        ValueError, TypeError: an argument does not fit; nothing has been written then.
        RuntimeError: the backend is not compiled in, or there is no driver.

    Rotary embeddings: Su et al., "RoFormer" (2021), https://arxiv.org/abs/2104.09864.
    """
    if out is None:
        batch, nodes, _ = shape_of(qkv, "qkv", "[B, N, (Hq + 2 Hkv) * D]")
        out = new_like(qkv, (batch, nodes, max(num_q_heads, 0), cache_layer.shape[-1]))
    _C.rope_kv_write(
        qkv,
        cos_table,
        sin_table,
        positions,
        slots,
        cache_layer,
        num_q_heads,
        q_norm,
        k_norm,
        eps,
        out,
        backend,
        stream,
    )
    return out


def add_rms_norm(
    residual: TensorLike,
    weight: TensorLike,
    delta: TensorLike | None = None,
    *,
    eps: float,
    out: TensorLike | None = None,
    backend: Backend | None = None,
    stream: int | None = None,
) -> TensorLike:
    """``residual += delta``, in place; returns ``residual / rms(residual) * weight``.

    The root mean square is taken of the sum as stored, in residual's dtype.

    Args:
        residual: ``[rows, D]`` float32, bfloat16 or float16; changed in place by `delta`.
        weight: ``[D]`` of the same dtype.
        delta: ``[rows, D]`` of the same dtype, or None.
        eps: added to the mean square.
        out: ``[rows, D]`` to be filled.
        backend, stream: as for `kv_commit`.

    Raises:
        ValueError, TypeError: an argument does not fit; nothing has been written then.
        RuntimeError: the backend is not compiled in, or there is no driver.

    Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), https://arxiv.org/abs/1910.07467.
    """
    if out is None:
        out = new_like(residual, shape_of(residual, "residual", "[rows, D]"))
    _C.add_rms_norm(residual, weight, delta, eps, out, backend, stream)
    return out


def silu_mul(
    gate_up: TensorLike,
    *,
    out: TensorLike | None = None,
    backend: Backend | None = None,
    stream: int | None = None,
) -> TensorLike:
    """``silu(gate) * up`` of a joint projection, ``silu(x) = x / (1 + exp(-x))``.

    Args:
        gate_up: ``[rows, 2F]`` float32, bfloat16 or float16: F of gate, then F of up.
        out: ``[rows, F]`` to be filled.
        backend, stream: as for `kv_commit`.

    Raises:
        ValueError, TypeError: an argument does not fit; nothing has been written then.
        RuntimeError: the backend is not compiled in, or there is no driver.

    Shazeer, "GLU Variants Improve Transformer" (2020), https://arxiv.org/abs/2002.05202.
    """
    if out is None:
        rows, width = shape_of(gate_up, "gate_up", "[rows, 2F]")
        out = new_like(gate_up, (rows, width // 2))
    _C.silu_mul(gate_up, out, backend, stream)
    return out


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight ``[N, K]`` as `linear` wants it: panels of 64 outputs, ``[ceil(N / 64), K, 64]``.

    Within a panel of bfloat16, outputs j and 16 + j of each 32 are neighbours: halves of one word.
    Kept as bfloat16 where every weight is exactly a bfloat16 number, as those of a checkpoint
    stored so are: half the bytes, bit for bit the same products. Otherwise float32.

    Raises:
        TypeError, ValueError: not a floating point torch tensor with two dimensions.
    """
    _check_weight(weight)
    exact = all(_is_bfloat16(block) for _, block in _blocks(weight))
    shape = (-(-len(weight) // PANEL), weight.shape[1], PANEL)
    packed = weight.new_empty(shape, dtype=torch.bfloat16 if exact else torch.float32)
    for first, block in _blocks(weight):
        panels = _panels(block.to(packed.dtype))
        packed[first : first + len(panels)] = panels
    return packed


def _check_weight(weight: torch.Tensor) -> None:
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        raise TypeError(
            f"weight was {type(weight).__name__}, must be a floating point torch tensor"
        )
    if weight.dim() != 2:
        raise ValueError(f"weight had shape {list(weight.shape)}, must be [N, K]")


def _blocks(weight: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Rows of a weight and the panel they begin at.

    What lies between a matrix and its packed form must not take the room of either.
    """
    step = max(BLOCK_ELEMENTS // max(weight.shape[1], 1) // PANEL, 1) * PANEL
    for begin in range(0, len(weight), step):
        yield begin // PANEL, weight[begin : begin + step]


def pack_weight_int8(weight: torch.Tensor) -> torch.Tensor:
    """A weight ``[N, K]`` rounded to int8, for `linear`: ``[ceil(N / 64), K + 4, 64]`` int8.

    Every output has a scale, its largest weight over 127; behind the K rows of a panel lie its 64
    scales, float32, as bytes. An output of zeros only, or of subnormal weights, becomes zeros.

    Raises:
        TypeError, ValueError: not a floating point torch tensor with two dimensions, or a weight
            is not finite.
    """
    _check_weight(weight)
    outputs, inputs = weight.shape
    packed = weight.new_zeros(-(-outputs // PANEL), inputs + SCALE_ROWS, PANEL, dtype=torch.int8)
    for first, block in _blocks(weight):
        whole, scale = quantise_int8(block)
        panels = packed[first : first - (-len(whole) // PANEL)]
        panels[:, :inputs] = _panels(whole)
        scales = F.pad(scale, (0, -len(scale) % PANEL)).view(-1, PANEL)
        panels[:, inputs:] = scales.view(torch.int8).view(-1, SCALE_ROWS, PANEL)
    return packed


def quantise_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``weight [N, K]`` as int8 in -127 .. 127, and the scales ``[N]`` float32 of its rows.

    Raises:
        TypeError, ValueError: as for `pack_weight_int8`.
    """
    _check_weight(weight)
    wide = weight.float()
    most = wide.abs().amax(1) if wide.shape[1] else wide.new_zeros(len(wide))
    if not bool(torch.isfinite(most).all()):
        raise ValueError("weight had numbers that are not finite, int8 cannot hold them")
    scale = most / 127
    scale[scale < torch.finfo(torch.float32).tiny] = 0.0
    divisor = scale.where(scale > 0, torch.inf)[:, None]
    return (wide / divisor).round_().clamp_(-127, 127).to(torch.int8), scale


def _is_bfloat16(block: torch.Tensor) -> bool:
    """Whether every number of ``block`` is a bfloat16 number."""
    return block.dtype == torch.bfloat16 or torch.equal(block.bfloat16().to(block.dtype), block)


def _panels(block: torch.Tensor) -> torch.Tensor:
    """``block [N, K]`` in panels, a view; its last one is filled up with zeros."""
    count, inputs = -(-len(block) // PANEL), block.shape[1]
    padded = F.pad(block, (0, 0, 0, -len(block) % PANEL))
    panels = padded.view(count, PANEL, inputs).transpose(1, 2)
    per_word = 4 // block.element_size()
    if per_word > 1:
        shape = (count, inputs, PANEL // 16 // per_word, per_word, 16)
        panels = panels.reshape(shape).transpose(3, 4).flatten(2)
    return panels


def linear(
    x: TensorLike,
    weight: TensorLike,
    num_outputs: int,
    *,
    bias: TensorLike | None = None,
    out: TensorLike | None = None,
) -> TensorLike:
    """``x @ weight.T + bias`` for few rows, the weight packed.

    The sums of a row are the same, bit for bit, whatever the number of rows: verifying m tokens at
    once gives the logits of decoding them one by one. Sums are float32.

    Args:
        x: ``[rows, K]`` float32, bfloat16 or float16.
        weight: as `pack_weight` or `pack_weight_int8` made it; the products with int8 are those of
            whole numbers, times the output's scale at the end of the sum.
        num_outputs: N.
        bias: ``[N]`` of x's dtype.
        out: ``[rows, N]`` to be filled.

    Raises:
        ValueError, TypeError: an argument does not fit; nothing has been written then.

    Register blocking and packed panels: Goto and van de Geijn, "Anatomy of high-performance matrix
    multiplication" (2008), https://doi.org/10.1145/1356052.1356053.
    """
    if out is None:
        rows, _ = shape_of(x, "x", "[rows, K]")
        out = new_like(x, (rows, num_outputs))
    _C.linear(x, weight, bias, out)
    return out
