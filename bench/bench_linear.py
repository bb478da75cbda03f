"""``linear`` against torch's products, with exact and int8 weights: what more rows cost beyond one.

torch's side of int8 is its own product for such weights, given bfloat16 rows, its fast way.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import num_bytes

from specbranch import ops


@pytest.mark.parametrize("rows", [1, 2, 5, 9])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(256, 1408), (256, 4096), (576, 3072), (2048, 2048), (2048, 11264)]
)
@pytest.mark.parametrize("weights", ["exact", "int8"])
def test_linear(measure, weights, rows, inputs, outputs):
    torch.manual_seed(0)
    x = torch.randn(rows, inputs)
    weight = torch.randn(outputs, inputs).to(torch.bfloat16).float()
    pack = ops.pack_weight if weights == "exact" else ops.pack_weight_int8
    packed = pack(weight)
    whole, scale = ops.quantise_int8(weight)
    narrow, scale = x.bfloat16(), scale.bfloat16()
    theirs = {
        "exact": lambda: F.linear(x, weight),
        "int8": lambda: torch.ops.aten._weight_int8pack_mm(narrow, whole, scale),
    }
    measure(
        {"specbranch": lambda: ops.linear(x, packed, outputs), "torch": theirs[weights]},
        num_bytes(x, packed) + 4 * rows * outputs,
    )
