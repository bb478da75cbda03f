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


class DecoderSequence(NamedTuple):
    """One of several sequences in a forward: where its n tokens go, and what they see."""

    cache: TensorLike  #: [L, 2, 1, Hkv, S, D], written in place; no two sequences share one
    positions: TensorLike  #: [1, n] int32
    slots: TensorLike  #: [1, n] int32
    prefix_length: TensorLike  #: [1] int32, as for `tree_attention`
    ancestor_bits: TensorLike | None


class DraftSequence(NamedTuple):
    """What one sequence drafts: see `Drafter.draft`. Outputs have R >= ``branches`` rows a step."""

    cache: TensorLike  #: [L, 2, 1, Hkv, S, D], written from slot `prefix` on
    tokens: TensorLike  #: [n] int64: a chain behind the prefix (`branches` 1), or n branches' heads
    prefix: int
    branches: int
    steps: int
    is_gumbel: bool  #: whether `draw` is "gumbel", as for `sample`
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    position: int  #: of the tokens that the first step draws
    stop_below: float  #: ends after the step by which every branch met a lower confidence
    logits: TensorLike  #: out [steps, R, V]
    cutoff: TensorLike  #: out [steps, R], filled only where something is cut
    drawn: TensorLike  #: out [steps, R] int32; -1: a bad row
    confidence: TensorLike  #: out [steps, R]


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

    def forward_batch(
        self,
        sequences: list[DecoderSequence],
        tokens: TensorLike,
        *,
        out: TensorLike,
        hidden: TensorLike | None = None,
    ) -> None:
        """As ``forward``, for several sequences whose tokens lie one after the other.

        The weights are read once for all of them; each sequence's rows and its cache are bit for
        bit what they would be in a forward of its own.

        Args:
            sequences: each with a cache of its own.
            tokens: ``[N]`` int64, N the tokens of all sequences.
            out: ``[N, V]``.
            hidden: ``[N, K, d]`` or None.

        Raises:
            ValueError, TypeError: an argument does not fit; nothing has been written then.
        """
        self._native.forward_batch(sequences, tokens, hidden, out)

    def draft(self, sequence: DraftSequence) -> int:
        """Run its tokens and draw from the last ``branches`` rows, then run what was drawn, ...

        Step s of branch r lies in slot ``prefix + s * branches + r``.

        Returns:
            How many steps were taken.

        Raises:
            ValueError, TypeError: an argument does not fit; nothing has been written then.
        """
        taken: int = self._native.draft(*sequence)
        return taken

    def draft_batch(self, sequences: list[DraftSequence]) -> list[int]:
        """As ``draft`` of each, bit for bit; those that go on share each step's forward.

        Returns:
            How many steps each has taken.

        Raises:
            ValueError, TypeError: an argument does not fit; nothing has been written then.
        """
        taken: list[int] = self._native.draft_batch(sequences)
        return taken
