"""``silu_mul`` against silu and multiply in PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import num_bytes

from specbranch import ops


@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize("width", [1024, 14336])
def test_silu_mul(measure, rows, width):
    torch.manual_seed(0)
    gate_up = torch.randn(rows, 2 * width)

    def plain() -> torch.Tensor:
        return F.silu(gate_up[:, :width]) * gate_up[:, width:]

    measure(
        {"specbranch": lambda: ops.silu_mul(gate_up), "torch": plain},
        num_bytes(gate_up) * 3 // 2,
    )
