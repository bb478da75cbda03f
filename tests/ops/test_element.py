"""Conversions of float16 and bfloat16 in the kernels, bit for bit, seen through simple ops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specbranch import ops


def every_pattern(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_value_survives(dtype: torch.dtype) -> None:
    """Attention to a single slot gives its value: to float32 and back."""
    patterns = every_pattern(dtype)
    rows = patterns[~patterns.isnan()].reshape(1, 1, 1, 1, -1)
    layer = torch.cat([torch.zeros_like(rows), rows])
    query = torch.zeros(1, 1, 1, rows.shape[-1], dtype=dtype)
    out = ops.tree_attention(query, layer, torch.zeros(1, dtype=torch.int32), None)
    # -0 is added to 0; infinity and all finite values are exact.
    assert torch.equal(out.flatten(), rows.flatten())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_round_to_nearest_even(dtype: torch.dtype) -> None:
    """The residual addition: every value plus random ones, special ones included."""
    first = every_pattern(dtype).repeat(8).reshape(8, -1)
    shuffled = np.random.default_rng(0).permuted(np.arange(2**16)[None].repeat(8, 0), axis=1)
    second = every_pattern(dtype)[torch.from_numpy(shuffled)]
    expected = (first.float() + second.float()).to(dtype)
    residual = first.clone()
    ops.add_rms_norm(residual, torch.ones(2**16, dtype=dtype), second, eps=1e-6)
    assert torch.equal(residual.isnan(), expected.isnan())
    assert torch.equal(residual.nan_to_num(nan=0), expected.nan_to_num(nan=0))
