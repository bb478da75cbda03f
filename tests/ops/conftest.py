"""Fixtures of the op tests: every backend that is present, every kind of array."""

from __future__ import annotations

import pytest
import torch
from ops.arrays import KINDS, Kind

from specbranch import ops

SIMT_ORDERS = ["simt", "simt:reverse", "simt:random"]


def _why_no_cuda() -> str | None:
    if not ops.backends()["cuda"]:
        return "this build has no CUDA backend"
    return None if torch.cuda.is_available() else "no CUDA device"


@pytest.fixture(params=["cpu", *SIMT_ORDERS, pytest.param("cuda", marks=pytest.mark.cuda)])
def backend(request: pytest.FixtureRequest) -> str:
    """For ops whose CUDA kernel exists: the CPU, the emulated kernel in three orders, the GPU."""
    name = str(request.param)
    if name == "cuda" and (reason := _why_no_cuda()):
        pytest.skip(reason)
    return name


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Library and dtype of the arrays that an op is given."""
    kind: Kind = request.param
    return kind
