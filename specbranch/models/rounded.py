"""A well aligned draft for tests: the target with its matrices rounded to few bits.

It saves neither time nor room, the rounded numbers are stored as the target's were. What it has is
the alignment that a quantised copy of the target would have.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import torch

from .linear import Linear, PlainLinear
from .llama import LayerWeights, LlamaModel


def rounded(target: LlamaModel, *, bits: int = 8) -> LlamaModel:
    """A copy whose weights are integers of ``bits`` bits times a scale an output row.

    Embedding, norms and biases are shared with the target.

    Args:
        target: a loaded model.
        bits: 2 .. 8, the sign included.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    if target.weights != "exact":
        raise ValueError(f"target had {target.weights} weights; they must be exact to be rounded")
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"bits was {bits!r}; it must be an integer")
    if not 2 <= bits <= 8:
        raise ValueError(f"bits was {bits}; it must be in 2 .. 8")
    most = 2 ** (bits - 1) - 1
    return LlamaModel(
        target.config,
        target.embedding,
        [_rounded_layer(layer, most) for layer in target.layers],
        target.final_norm,
        _rounded_linear(target.head, most),
        target.backend,
    )


def _rounded_layer(layer: LayerWeights, most: int) -> LayerWeights:
    return replace(
        layer,
        qkv=_rounded_linear(layer.qkv, most),
        out=_rounded_linear(layer.out, most),
        gate_up=_rounded_linear(layer.gate_up, most),
        down=_rounded_linear(layer.down, most),
    )


def _rounded_linear(linear: Linear | PlainLinear, most: int) -> Linear | PlainLinear:
    # Both [N, K] and the packed [panels, K, 64] have the inputs of an output along dimension 1.
    made = copy(linear)
    made.weight = _rounded_weight(linear.weight, most)
    return made


def _rounded_weight(weight: torch.Tensor, most: int) -> torch.Tensor:
    """``weight``, its rows along dimension 1 rounded to ``-most .. most`` times a scale of each."""
    scale = weight.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / most
    return ((weight.float() / scale).round() * scale).to(weight.dtype)
