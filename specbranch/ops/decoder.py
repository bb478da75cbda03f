"""All layers of a Llama decoder in one native call."""

from __future__ import annotations

from typing import NamedTuple

from specbranch import _C
from specbranch.ops._common import TensorLike


class LayerTensors(NamedTuple):
    """Weights of one layer; matrices packed by `pack_weight`, biases and head norms may be None."""

    input_norm: TensorLike  #: [d]
    qkv: TensorLike  #: (Hq + 2 Hkv) * D outputs
    qkv_bias: TensorLike | None
    q_norm: TensorLike | None  #: [D]
    k_norm: TensorLike | None  #: [D]
    out: TensorLike  #: d outputs
    out_bias: TensorLike | None
    mlp_norm: TensorLike  #: [d]
    gate_up: TensorLike  #: 2F outputs
    gate_up_bias: TensorLike | None
    down: TensorLike  #: d outputs
    down_bias: TensorLike | None


class Decoder:
    """`add_rms_norm`, `linear`, `rope_kv_write`, `tree_attention`, `silu_mul`, layer by layer.

    Bit for bit what they give one by one. One call a forward, without the interpreter lock: two
    models on two threads really run at the same time.

    Args:
        layers: weights; kept alive by this object.
        final_norm: ``[d]``; its dtype is the decoder's.
        cos_table, sin_table: ``[P, D/2]`` float32.
        num_q_heads, num_kv_heads, head_dim: Hq, Hkv, D.
        inner_size: F, width of the MLP.
        eps: of all norms.

    Raises:
        ValueError, TypeError: a tensor does not fit.
    """

    def __init__(
        self,
        layers: list[LayerTensors],
        final_norm: TensorLike,
        cos_table: TensorLike,
        sin_table: TensorLike,
        *,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        inner_size: int,
        eps: float,
    ) -> None:
        self._native = _C.Decoder(
            [tuple(layer) for layer in layers],
            final_norm,
            cos_table,
            sin_table,
            num_q_heads,
            num_kv_heads,
            head_dim,
            inner_size,
            eps,
        )
        self._scale = head_dim**-0.5

    def forward(
        self,
        residual: TensorLike,
        cache: TensorLike,
        positions: TensorLike,
        slots: TensorLike,
        prefix_length: TensorLike,
        ancestor_bits: TensorLike | None,
        *,
        out: TensorLike,
        hidden: TensorLike | None = None,
    ) -> None:
        """Run N tokens through all layers.

        Args:
            residual: ``[N, d]`` embeddings; afterwards the last layer's output.
            cache: ``[L, 2, 1, Hkv, S, D]``, written in place.
            positions, slots: ``[1, N]`` int32.
            prefix_length, ancestor_bits: as for `tree_attention`.
            out: ``[N, d]``, filled with the normalised output.
            hidden: ``[N, K, d]`` or None, filled with the outputs of the last K layers.

        Raises:
            ValueError, TypeError: an argument does not fit; nothing has been written then.
        """
        self._native.forward(
            residual,
            cache,
            positions,
            slots,
            prefix_length,
            ancestor_bits,
            self._scale,
            hidden,
            out,
        )
