"""What a reader of a result must know about where it came from."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Last: an installed package comes first, but what is read here must not wait for a build.
sys.path.append(str(ROOT))

from specbranch.host import checkout, device_name, driver, installed, today  # noqa: E402

__all__ = ["ROOT", "commit", "device_name", "driver", "installed", "record", "today"]
SOURCES = ("specbranch", "csrc", "CMakeLists.txt", "bench/*.py")


def record(kind: str, device: str) -> dict[str, Any]:
    """Kind, command, date, commit, device, driver and versions."""
    from specbranch import _C

    return {
        "kind": kind,
        "command": shlex.join(["python", f"bench/{Path(sys.argv[0]).name}", *_arguments()]),
        "date": today(),
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
    found = checkout(ROOT, sources or SOURCES)
    found["commit"] = found["commit"] or os.environ.get("SUITE_COMMIT")
    return found


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
