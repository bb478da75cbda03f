"""What a reader of a result must know about where it came from: commit, device, versions, date."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

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


def today() -> str:
    """The date, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


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
    if _git(root, "ls-files", "--error-unmatch", "specbranch/__init__.py") is None:
        return {"commit": None, "uncommitted_changes": None}
    changed = _git(root, "status", "--porcelain", "--", *sources)
    return {
        "commit": _git(root, "rev-parse", "HEAD"),
        "uncommitted_changes": None if changed is None else bool(changed),
    }


def device_name(device: str) -> str:
    """The GPU's, or the CPU's."""
    if device != "cpu":
        return str(torch.cuda.get_device_name(device))
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def driver() -> str | None:
    """Version of the NVIDIA driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return done.stdout.split("\n")[0].strip() or None


def installed(name: str) -> str | None:
    """Version of a distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(root: Path, *args: str) -> str | None:
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
