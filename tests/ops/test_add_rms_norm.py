"""add_rms_norm against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops.arrays import Kind, assert_close, on_device, skip_numpy_on_device, values

from specbranch import ops
from specbranch.testing import oracles_cache as oracles

SIZES = [(1, 1), (1, 192), (9, 256), (33, 17), (300, 64), (2, 4097), (0, 64), (3, 0)]


@pytest.mark.parametrize(("rows", "dim"), SIZES)
@pytest.mark.parametrize("with_delta", [True, False], ids=["delta", "plain"])
def test_matches_oracle(backend: str, kind: Kind, rows: int, dim: int, with_delta: bool) -> None:
    skip_numpy_on_device(backend, kind)
    rng = np.random.default_rng(dim)
    residual, delta = (kind.floats(rng.normal(size=(rows, dim))) for _ in range(2))
    weight = kind.floats(rng.normal(size=dim))
    total = values(residual) + (values(delta) if with_delta else 0)
    residual, delta, weight, out = on_device(
        backend, residual, delta, weight, kind.poisoned(rows, dim)
    )
    given = ops.add_rms_norm(
        residual, weight, delta if with_delta else None, eps=1e-5, out=out, backend=backend
    )
    assert given is out
    assert_close(residual, total, kind, magnitude=0.0, terms=0)
    # The norm is taken of what the residual now stores.
    if dim:
        expected = oracles.rms_norm(values(residual), values(weight), 1e-5)
        assert_close(out, expected, kind, magnitude=np.abs(expected), terms=8 + dim / 16)
    fresh = ops.add_rms_norm(residual, weight, eps=1e-5, backend=backend)
    np.testing.assert_array_equal(values(fresh), values(out))


def test_large_values_do_not_overflow_silently() -> None:
    """1e4 squared is beyond float16, not beyond the float32 of the sum."""
    x = torch.full((1, 64), 1e4, dtype=torch.float16)
    out = ops.add_rms_norm(x, torch.ones(64, dtype=torch.float16), eps=1e-6)
    assert torch.equal(out, torch.ones(1, 64, dtype=torch.float16))


def test_nan_shows() -> None:
    x = torch.ones(2, 8)
    x[1, 3] = float("nan")
    out = ops.add_rms_norm(x, torch.ones(8), eps=1e-6)
    assert out[0].isfinite().all() and out[1].isnan().all()


def test_bad_input() -> None:
    x, weight = torch.ones(2, 8), torch.ones(8)
    with pytest.raises(ValueError, match=r"weight had shape \[7\], must be \[D\] = \[8\]"):
        ops.add_rms_norm(x, torch.ones(7), eps=1e-6)
    with pytest.raises(TypeError, match="weight had dtype float16, must be float32"):
        ops.add_rms_norm(x, weight.half(), eps=1e-6)
    with pytest.raises(ValueError, match="delta had shape"):
        ops.add_rms_norm(x, weight, torch.ones(1, 8), eps=1e-6)
    with pytest.raises(ValueError, match="residual had shape"):
        ops.add_rms_norm(x[0], weight, eps=1e-6)
    with pytest.raises(ValueError, match="residual had strides"):
        ops.add_rms_norm(torch.ones(8, 2).t(), weight, eps=1e-6)
    with pytest.raises(ValueError, match=r"weight was a tensor that requires grad.*detach\(\)"):
        ops.add_rms_norm(x, torch.nn.Parameter(weight), eps=1e-6)
    assert (x == 1).all()
