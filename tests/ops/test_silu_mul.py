"""silu_mul against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops.arrays import Kind, assert_close, on_device, skip_numpy_on_device, values

from specbranch import ops
from specbranch.testing import oracles_cache as oracles


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 512), (9, 704), (300, 33), (0, 8), (2, 0)])
def test_matches_oracle(backend: str, kind: Kind, rows: int, width: int) -> None:
    skip_numpy_on_device(backend, kind)
    rng = np.random.default_rng(width)
    gate_up, out = on_device(
        backend,
        kind.floats(rng.normal(size=(rows, 2 * width)) * 4),
        kind.poisoned(rows, width),
    )
    assert ops.silu_mul(gate_up, out=out, backend=backend) is out
    expected = oracles.silu_mul(values(gate_up))
    assert_close(out, expected, kind, magnitude=np.abs(expected), terms=10)
    np.testing.assert_array_equal(values(ops.silu_mul(gate_up, backend=backend)), values(out))


def test_extremes() -> None:
    gate = torch.tensor([[-1e30, -200.0, -80.0, 0.0, 80.0, 1e30, float("inf")]])
    out = ops.silu_mul(torch.cat([gate, torch.ones_like(gate)], 1))[0]
    # Beyond -87 the product is 0 to within 1e-35.
    expected = [0.0, 0.0, -80 / (1 + np.exp(80.0)), 0.0, 80.0, float(np.float32(1e30)), np.inf]
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_undefined_values_show(value: float) -> None:
    gate_up = torch.tensor([[value, 1.0]])
    assert (
        ops.silu_mul(gate_up).isnan().all()
        == torch.nn.functional.silu(gate_up[:, :1]).isnan().all()
    )


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"gate_up had 5 columns, must have an even number"):
        ops.silu_mul(torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"out had shape \[2, 4\], must be \[rows, F\] = \[2, 3\]"):
        ops.silu_mul(torch.ones(2, 6), out=torch.ones(2, 4))
    with pytest.raises(TypeError, match="out had dtype float16, must be float32"):
        ops.silu_mul(torch.ones(2, 6), out=torch.ones(2, 3).half())
    with pytest.raises(TypeError, match="gate_up had dtype int64"):
        ops.silu_mul(torch.ones(2, 6).long())
    with pytest.raises(TypeError, match="gate_up was str, must be a torch tensor or a NumPy array"):
        ops.silu_mul("x")
