"""All decoder layers, op by op: torch's matrix products, our kernels for what surrounds them.

What ``ops.Decoder`` is on a CPU, for devices whose matrix products are torch's business. No call in
here waits for the device or reads a value from it, so that a graph can capture a forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from .. import ops
from .config import LlamaConfig
from .linear import PlainLinear


class Trunk(Protocol):
    """From embeddings to the final norm's output."""

    def forward(
        self,
        residual: torch.Tensor,
        cache: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        prefix_length: torch.Tensor,
        ancestor_bits: torch.Tensor | None,
        *,
        out: torch.Tensor,
        hidden: torch.Tensor | None = None,
    ) -> None:
        """See ``ops.Decoder.forward``."""
        ...


class OpsLayer(Protocol):
    """Weights of one layer, not packed."""

    input_norm: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    mlp_norm: torch.Tensor

    @property
    def plain(self) -> tuple[PlainLinear, PlainLinear, PlainLinear, PlainLinear]:
        """qkv, out, gate_up, down."""
        ...


class OpsTrunk:
    """Decoder layers over ``ops``.

    Args:
        config: sizes.
        layers: weights.
        final_norm: ``[d]``.
        cos_table, sin_table: ``[P, D/2]`` float32.
        backend: of the ops; None: that of the tensors' device.
    """

    def __init__(
        self,
        config: LlamaConfig,
        layers: Sequence[OpsLayer],
        final_norm: torch.Tensor,
        cos_table: torch.Tensor,
        sin_table: torch.Tensor,
        backend: ops.Backend | None,
    ) -> None:
        self._config, self._layers, self._final_norm = config, layers, final_norm
        self._cos, self._sin, self._backend = cos_table, sin_table, backend

    def forward(
        self,
        residual: torch.Tensor,
        cache: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        prefix_length: torch.Tensor,
        ancestor_bits: torch.Tensor | None,
        *,
        out: torch.Tensor,
        hidden: torch.Tensor | None = None,
    ) -> None:
        """Run N tokens through all layers; arguments as for ``ops.Decoder.forward``."""
        place = ops.DecoderSequence(cache, positions, slots, prefix_length, ancestor_bits)
        self.forward_batch(residual, [place], out=out, hidden=hidden)

    def forward_batch(
        self,
        residual: torch.Tensor,
        sequences: Sequence[ops.DecoderSequence],
        *,
        out: torch.Tensor,
        hidden: torch.Tensor | None = None,
    ) -> None:
        """The same for the tokens of several sequences, which lie one after the other."""
        kept = 0 if hidden is None else hidden.shape[1]
        delta: torch.Tensor | None = None
        for idx, layer in enumerate(self._layers):
            normed = self._norm(residual, layer.input_norm, delta)
            _keep(hidden, residual, idx - 1 - (len(self._layers) - kept))
            qkv, joined, gate_up, down = layer.plain
            delta = joined(self._attend_all(qkv(normed), layer, idx, sequences))
            normed = self._norm(residual, layer.mlp_norm, delta)
            delta = down(ops.silu_mul(gate_up(normed), backend=self._backend))
        out.copy_(self._norm(residual, self._final_norm, delta))
        _keep(hidden, residual, kept - 1)

    def _attend_all(
        self,
        qkv: torch.Tensor,
        layer: OpsLayer,
        idx: int,
        sequences: Sequence[ops.DecoderSequence],
    ) -> torch.Tensor:
        """Attention ``[N, Hq * D]``, sequence by sequence."""
        if len(sequences) == 1:
            return self._attend(qkv, layer, idx, sequences[0])
        rows = torch.split(qkv, [each.slots.shape[1] for each in sequences])
        pairs = zip(rows, sequences, strict=True)
        return torch.cat([self._attend(part, layer, idx, each) for part, each in pairs])

    def _attend(
        self, qkv: torch.Tensor, layer: OpsLayer, idx: int, sequence: ops.DecoderSequence
    ) -> torch.Tensor:
        cache, positions, slots, prefix_length, ancestor_bits = sequence
        query = self._rope(qkv, layer, positions, slots, cache[idx])
        seen: torch.Tensor = ops.tree_attention(
            query, cache[idx], prefix_length, ancestor_bits, backend=self._backend
        )
        return seen.view(len(qkv), -1)

    def _norm(
        self, residual: torch.Tensor, weight: torch.Tensor, delta: torch.Tensor | None
    ) -> torch.Tensor:
        normed: torch.Tensor = ops.add_rms_norm(
            residual, weight, delta, eps=self._config.norm_eps, backend=self._backend
        )
        return normed

    def _rope(
        self,
        qkv: torch.Tensor,
        layer: OpsLayer,
        positions: torch.Tensor,
        slots: torch.Tensor,
        cache_layer: torch.Tensor,
    ) -> torch.Tensor:
        query: torch.Tensor = ops.rope_kv_write(
            qkv.unsqueeze(0),
            self._cos,
            self._sin,
            positions,
            slots,
            cache_layer,
            self._config.num_heads,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            eps=self._config.norm_eps,
            backend=self._backend,
        )
        return query


def _keep(hidden: torch.Tensor | None, residual: torch.Tensor, idx: int) -> None:
    """``residual`` is the output of the layer that row ``idx`` of ``hidden`` is for; < 0: none."""
    if hidden is not None and idx >= 0:
        hidden[:, idx].copy_(residual)
