"""``specbranch info``: what a bug report must say about an installation."""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

from specbranch.cli.options import Options


def info(options: Options) -> int:
    """Run the command; the return value is the exit code."""
    found = collect()
    if options.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        sys.stdout.write("".join(line + "\n" for line in _lines(found)))
    return 0


def collect() -> dict[str, Any]:
    """Versions, backends, devices and build flags as plain values."""
    import torch

    import specbranch
    from specbranch import _C, ops

    return {
        "versions": {
            "specbranch": specbranch.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "platform": f"{platform.system()} {platform.machine()}",
        "backends": dict(ops.backends()),
        "devices": _devices(),
        "build": _C.build_info(),
    }


def _devices() -> list[str]:
    import torch

    from specbranch.lanes import num_cores

    devices = [f"cpu: {num_cores()} cores, {torch.get_num_threads()} torch threads"]
    for idx in range(torch.cuda.device_count()):
        devices.append(f"cuda:{idx}: {torch.cuda.get_device_name(idx)}")
    return devices


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"{name:<12}{version}" for name, version in found["versions"].items()]
    lines.append(f"{'platform':<12}{found['platform']}")
    for name, compiled in found["backends"].items():
        lines.append(f"{'backend':<12}{name}: {'compiled in' if compiled else 'not compiled in'}")
    lines += [f"{'device':<12}{device}" for device in found["devices"]]
    lines += [
        f"{'build':<12}{name}: {'none' if value == '' else value}"
        for name, value in found["build"].items()
    ]
    return lines
