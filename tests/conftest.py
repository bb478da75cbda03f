"""Tests import their shared helpers by folder, ``from engine.lossless import ...``, and bench/."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Workers of pytest-xdist share the cores. Threads beyond the cores would spin against each other
# in every small operation of torch. Set before torch is imported; processes that tests start
# inherit it.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import torch

THREADS = torch.get_num_threads()
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.append(str(HERE.parent / "bench"))


@pytest.fixture(autouse=True)
def threads_of_torch() -> Iterator[None]:
    """What a test runs in this process may set torch's number of threads: for itself only."""
    yield
    if torch.get_num_threads() != THREADS:
        torch.set_num_threads(THREADS)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--network`` runs what downloads a checkpoint."""
    parser.addoption("--network", action="store_true", help="run tests that download checkpoints")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests marked ``network`` unless they are asked for."""
    if config.getoption("--network"):
        return
    skip = pytest.mark.skip(reason="downloads a checkpoint and takes minutes; --network runs it")
    for item in items:
        if "network" in item.keywords:
            item.add_marker(skip)
