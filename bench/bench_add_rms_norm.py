"""``add_rms_norm`` against add and rms_norm in PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import num_bytes

from specbranch import ops


@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize("dim", [256, 4096])
def test_add_rms_norm(measure, rows, dim):
    torch.manual_seed(0)
    residual, delta = torch.randn(rows, dim), 1e-4 * torch.randn(rows, dim)
    weight = torch.randn(dim)

    def plain() -> torch.Tensor:
        residual.add_(delta)
        return F.rms_norm(residual, (dim,), weight, 1e-6)

    measure(
        {
            "specbranch": lambda: ops.add_rms_norm(residual, weight, delta, eps=1e-6),
            "torch": plain,
        },
        4 * num_bytes(residual) + num_bytes(weight),
    )
