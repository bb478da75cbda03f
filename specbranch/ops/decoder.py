"""All layers of a Llama decoder in one native call."""

from __future__ import annotations

from typing import NamedTuple

from specbranch import _C
from specbranch.ops._common import TensorLike
from specbranch.ops._rows import is_gumbel


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


class Drafter:
    """A `Decoder` with its embedding and head: a forward, or several drafting steps, in one call.

    Bit for bit what `Decoder.forward`, `linear`, `logit_cutoff` and `sample` give step by step.

    Args:
        decoder: all layers.
        embedding: ``[V, d]`` of the decoder's dtype.
        head: packed by `pack_weight`, V outputs.
        head_bias: ``[V]`` or None.
    """

    def __init__(
        self,
        decoder: Decoder,
        embedding: TensorLike,
        head: TensorLike,
        head_bias: TensorLike | None = None,
    ) -> None:
        self._native = _C.Drafter(decoder._native, embedding, head, head_bias, decoder._scale)

    def forward(
        self,
        cache: TensorLike,
        tokens: TensorLike,
        positions: TensorLike,
        slots: TensorLike,
        prefix_length: TensorLike,
        ancestor_bits: TensorLike | None,
        *,
        out: TensorLike,
        hidden: TensorLike | None = None,
    ) -> None:
        """Fill ``out [N, V]`` with the logits of ``tokens [N]`` int64.

        The other arguments as for `Decoder.forward`.

        Raises:
            ValueError, TypeError: an argument does not fit; nothing has been written then.
        """
        self._native.forward(
            cache, tokens, positions, slots, prefix_length, ancestor_bits, hidden, out
        )

    def draft(
        self,
        cache: TensorLike,
        tokens: TensorLike,
        *,
        prefix: int,
        branches: int,
        steps: int,
        draw: str,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        seed: int,
        position: int,
        stop_below: float,
        logits: TensorLike,
        cutoff: TensorLike,
        drawn: TensorLike,
        confidence: TensorLike,
    ) -> int:
        """Run ``tokens`` and draw from the last ``branches`` rows, then run what was drawn, ...

        Args:
            cache: ``[L, 2, 1, Hkv, S, D]``, written from slot ``prefix`` on.
            tokens: ``[n]`` int64: a chain behind the prefix (``branches`` 1), or the heads of n =
                ``branches`` branches; step s of branch r then lies in slot
                ``prefix + s * branches + r``.
            position: of the tokens that the first step draws.
            stop_below: ends after the step by which every branch met a lower confidence.
            logits, cutoff, drawn, confidence: outputs ``[steps, R, V]`` and ``[steps, R]``, R >=
                ``branches``; the cutoff only where something is cut. Token -1: a bad row.

        Returns:
            How many steps were taken.

        Raises:
            ValueError, TypeError: an argument does not fit; nothing has been written then.
        """
        taken: int = self._native.draft(
            cache,
            tokens,
            prefix,
            branches,
            steps,
            is_gumbel(draw),
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            position,
            stop_below,
            logits,
            cutoff,
            drawn,
            confidence,
        )
        return taken
