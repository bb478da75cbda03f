"""Matrix products with few rows: what a decoder spends its time on."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .. import ops


class Linear:
    """``x @ weight.T + bias``; keeps the weight packed, see ``ops.pack_weight``.

    Why not ``torch.nn.functional.linear``: for 2 to 16 rows, which is what verification asks for,
    it costs several times one row on many CPUs, and its sums depend on the number of rows
    (``bench/bench_linear.py``).

    Args:
        weight: ``[out, in]``.
        bias: ``[out]`` or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.num_outputs = len(weight)
        self.weight, self.bias = self._packed(weight), bias

    @staticmethod
    def _packed(weight: torch.Tensor) -> torch.Tensor:
        return ops.pack_weight(weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``[rows, in] -> [rows, out]``."""
        out: torch.Tensor = ops.linear(x, self.weight, self.num_outputs, bias=self.bias)
        return out


class Int8Linear(Linear):
    """The same of a weight that is rounded to int8, a scale an output: a quarter of float32.

    Another matrix than the one given; see ``docs/weights.md``.
    """

    @staticmethod
    def _packed(weight: torch.Tensor) -> torch.Tensor:
        return ops.pack_weight_int8(weight)


class PlainLinear:
    """``x @ weight.T + bias`` by torch, on any device.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]`` or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.num_outputs = len(weight)
        self.weight, self.bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``[rows, in] -> [rows, out]``."""
        return F.linear(x, self.weight, self.bias)
