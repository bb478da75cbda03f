"""Machine, installation and checkout, as results record them; needs nothing but Python itself."""

from __future__ import annotations

import datetime
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def today() -> str:
    """The date, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def device_name(device: str) -> str:
    """The GPU's, or the CPU's."""
    if device != "cpu":
        import torch

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
    """Version of a distribution; CuPy's name says for which CUDA."""
    for candidate in (name, f"{name}-cuda12x", f"{name}-cuda13x"):
        try:
            return version(candidate)
        except PackageNotFoundError:
            continue
    return None


def checkout(root: Path, sources: Sequence[str]) -> dict[str, Any]:
    """The commit of ``root``, and whether ``sources`` differ from it; None: git does not say."""
    changed = git(root, "status", "--porcelain", "--", *sources)
    return {
        "commit": git(root, "rev-parse", "HEAD"),
        "uncommitted_changes": None if changed is None else bool(changed),
    }


def git(root: Path, *args: str) -> str | None:
    """What git prints, None where it fails or is not there."""
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
