"""What a reader of a result must know about where it came from."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("specbranch", "csrc", "CMakeLists.txt", "bench/*.py")


def record(kind: str, device: str) -> dict[str, Any]:
    """Kind, command, date, commit, device, driver and versions."""
    from specbranch import _C

    return {
        "kind": kind,
        "command": shlex.join(["python", f"bench/{Path(sys.argv[0]).name}", *_arguments()]),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        **commit(),
        "device": device_name(device),
        "driver": None if device == "cpu" else driver(),
        "versions": {"python": platform.python_version()}
        | {name: installed(name) for name in ("specbranch", "torch", "cupy", "flashinfer-python")},
        "build": {key: str(value) for key, value in _C.build_info().items()},
    }


def _arguments() -> list[str]:
    """The command line's, without the folders of whoever ran it."""
    return [Path(given).name if Path(given).is_absolute() else given for given in sys.argv[1:]]


def commit(*sources: str) -> dict[str, Any]:
    """The commit, and whether the sources differ from it. SUITE_COMMIT serves trees without git."""
    changed = _git("status", "--porcelain", "--", *(sources or SOURCES))
    return {
        "commit": _git("rev-parse", "HEAD") or os.environ.get("SUITE_COMMIT"),
        "uncommitted_changes": None if changed is None else bool(changed),
    }


def device_name(device: str) -> str:
    """The GPU's, or the CPU's."""
    if device != "cpu":
        import torch

        return str(torch.cuda.get_device_name(device))
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


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


def _git(*args: str) -> str | None:
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def main(argv: list[str]) -> None:
    """``machine.py OUT DEVICE part:status:seconds ...``: the summary of bench/gpu_suite.sh."""
    out, device, *given = argv
    fields = [part.split(":") for part in given]
    parts = [
        {"part": name, "status": status, "seconds": int(seconds)}
        for name, status, seconds in fields
    ]
    about: dict[str, Any] = {"kind": "suite", **commit()}
    try:
        about = record("suite", device)
    except Exception as error:  # a build that failed: the parts must be reported all the same
        about["error"] = f"{type(error).__name__}: {error}"
    text = json.dumps(about | {"parts": parts}, indent=1)
    Path(out).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
