"""What was built: the module's account of itself, its exports, and its independence of torch."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

import specbranch
from specbranch import _C, ops


def test_build_info() -> None:
    info = _C.build_info()
    assert set(info) == {
        "version",
        "compiler",
        "flags",
        "cuda",
        "cuda_version",
        "cuda_archs",
    }
    assert info["version"] == specbranch.__version__
    assert info["compiler"]
    assert "-march=native" not in info["flags"]
    assert bool(info["cuda_archs"]) == info["cuda"]
    assert ops.backends() == {"cpu": True, "simt": True, "cuda": info["cuda"]}


def test_the_module_does_not_need_torch() -> None:
    program = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('_C', {_C.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "import numpy as np\n"
        "out = np.zeros((1, 2), np.float32)\n"
        "module.silu_mul(np.ones((1, 4), np.float32), out, None, None)\n"
        "assert abs(out[0, 0] - 0.7310586) < 1e-6\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
def test_only_the_init_function_is_exported() -> None:
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", _C.__file__], check=True, capture_output=True, text=True
    )
    assert [line.split()[-1] for line in listing.stdout.splitlines()] == ["PyInit__C"]
