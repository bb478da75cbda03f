"""Op benchmarks: ``pytest bench/bench_<op>.py``, each op beside the plain PyTorch composition.

After pytest-benchmark's own table comes one with the bytes that had to move (inputs read once,
outputs written once) and the bandwidth that makes of the median time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

IMPLEMENTATIONS = ("specbranch", "torch")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> str:
    """Whose turn it is."""
    return str(request.param)


@pytest.fixture
def measure(
    benchmark: Any, implementation: str, request: pytest.FixtureRequest
) -> Callable[..., None]:
    """``measure({"specbranch": f, "torch": g}, num_bytes)`` times the one whose turn it is."""

    def run(functions: dict[str, Callable[[], object]], num_bytes: int) -> None:
        benchmark.group = request.node.name.replace(f"{implementation}-", "").replace(
            f"-{implementation}", ""
        )
        benchmark.extra_info["bytes"] = num_bytes
        torch.manual_seed(0)
        benchmark.pedantic(functions[implementation], rounds=30, iterations=5, warmup_rounds=3)

    return run


def num_bytes(*tensors: torch.Tensor) -> int:
    """Bytes of all elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table of bytes moved."""
    session = getattr(config, "_benchmarksession", None)
    for found in getattr(session, "benchmarks", []):
        moved = found.extra_info.get("bytes")
        if moved is None or found.has_error:
            continue
        terminalreporter.write_line(
            f"{found.name:64s} {moved / 1e6:9.3f} MB  {1e6 * found.stats.median:9.1f} us  "
            f"{moved / found.stats.median / 1e9:7.2f} GB/s"
        )
