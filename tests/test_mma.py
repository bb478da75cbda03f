"""The emulated tensor-core product, fragments, loads and copies, against a plain one."""

from __future__ import annotations

import pytest
import torch

from specbranch import _C


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_is_the_matrix_product(dtype: torch.dtype, transposed: bool, order: int) -> None:
    torch.manual_seed(order)
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype)
    c = torch.full((16, 8), float("nan"))
    given = b if transposed else b.T.contiguous()
    _C.probe.simt_mma(a, given, transposed, order, c)
    expected = 1 + a.double() @ b.double()
    torch.testing.assert_close(c.double(), expected, rtol=0, atol=2e-5)


def test_every_element_has_its_place() -> None:
    """One nonzero pair at a time: (i, k) of a and (k, j) of b meet in (i, j) and nowhere else."""
    for place in range(0, 16 * 16 * 8, 7):
        i, k, j = place // 128, place // 8 % 16, place % 8
        a, b = torch.zeros(16, 16).half(), torch.zeros(16, 8).half()
        a[i, k], b[k, j] = 2, 3
        c = torch.empty(16, 8)
        _C.probe.simt_mma(a, b, True, 0, c)
        expected = torch.ones(16, 8)
        expected[i, j] = 7
        assert torch.equal(c, expected), (i, k, j)
