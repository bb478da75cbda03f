"""Tests import their shared helpers by folder, ``from engine.lossless import ...``, and bench/."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.append(str(HERE.parent / "bench"))


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
