"""What a reader of a result must know about where it came from: commit, device, versions, date."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..host import checkout, device_name, driver, git, installed, today
from ..lanes import num_cores
from ..models.protocol import CausalLM

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("specbranch", "csrc", "CMakeLists.txt")
DISTRIBUTIONS = ("torch", "numpy", "tokenizers")


def record(models: Sequence[CausalLM], threads: int | None) -> dict[str, Any]:
    """Date, commit, devices and versions of a run over ``models``."""
    from .. import __version__

    return {
        "date": today(),
        **commit(),
        "device": devices(models, threads),
        "versions": {"specbranch": __version__, "python": platform.python_version()}
        | {name: installed(name) for name in DISTRIBUTIONS},
    }


def devices(models: Sequence[CausalLM], threads: int | None) -> dict[str, Any]:
    """The CPU, and the GPU of each model where one was used."""
    found: dict[str, Any] = {
        "cpu": device_name("cpu"),
        "cores": num_cores(),
        "cores_of_machine": os.cpu_count() or num_cores(),
        "threads": threads or num_cores(),
        "system": platform.platform(),
    }
    gpus = {str(model.device) for model in models if model.device.type == "cuda"}
    if gpus:
        found["gpus"] = {name: device_name(name) for name in sorted(gpus)}
        found |= {"driver": driver(), "cuda": torch.version.cuda}
    return found


def load_average() -> float | None:
    """Tasks that wanted a core in the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def commit(root: Path = ROOT, sources: Sequence[str] = SOURCES) -> dict[str, Any]:
    """The commit, and whether the sources differ from it; None each for an installed package."""
    # A package installed below somebody else's checkout is no part of it.
    if git(root, "ls-files", "--error-unmatch", "specbranch/__init__.py") is None:
        return {"commit": None, "uncommitted_changes": None}
    return checkout(root, sources)
