"""Matrix products with few rows: what a decoder spends its time on."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class Linear:
    """``x @ weight.T + bias``.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]`` or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``[rows, in] -> [rows, out]``."""
        return F.linear(x, self.weight, self.bias)
