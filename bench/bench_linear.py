"""``linear`` against ``torch.nn.functional.linear``: what more rows cost beyond one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import num_bytes

from specbranch import ops


@pytest.mark.parametrize("rows", [1, 2, 5, 9])
@pytest.mark.parametrize(("inputs", "outputs"), [(256, 1408), (256, 4096), (2048, 2048)])
def test_linear(measure, rows, inputs, outputs):
    torch.manual_seed(0)
    x = torch.randn(rows, inputs)
    weight = torch.randn(outputs, inputs).to(torch.bfloat16).float()
    packed = ops.pack_weight(weight)
    measure(
        {
            "specbranch": lambda: ops.linear(x, packed, outputs),
            "torch": lambda: F.linear(x, weight),
        },
        num_bytes(x, packed) + 4 * rows * outputs,
    )
