"""``specbranch info``: what a bug report must say about an installation, and what models need."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

from specbranch.cli.options import Options


def info(options: Options) -> int:
    """Run the command; the return value is the exit code."""
    found = collect()
    named = {"target": options.target, "draft": options.draft}
    models = {role: describe(path) for role, path in named.items() if path is not None}
    if models:
        found["models"] = models
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


def describe(path: Path) -> dict[str, Any]:
    """Sizes of a checkpoint, from its config alone; the weights are not loaded."""
    import torch

    from specbranch.models import load_config

    config = load_config(path)
    dtypes = dict.fromkeys(("float32", str(config.stored_dtype).removeprefix("torch.")))
    return {
        "path": str(path),
        "family": config.family,
        "parameters": config.num_parameters,
        "weight_bytes": _weight_bytes(path),
        "int8_bytes": config.int8_bytes(),
        "max_seq_len": config.max_seq_len,
        "cache_bytes": {
            name: config.cache_bytes(config.max_seq_len, getattr(torch, name)) for name in dtypes
        },
    }


def _weight_bytes(path: Path) -> int:
    """Of the files that hold the weights."""
    from specbranch.models.gguf import find_gguf

    single = find_gguf(path)
    files = [single] if single is not None else sorted(path.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files)


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
    for role, model in found.get("models", {}).items():
        lines += [f"{role:<12}{line}" for line in _model_lines(model)]
    return lines


def _model_lines(model: dict[str, Any]) -> list[str]:
    caches = [
        f"cache: {_size(size)} in {dtype} for {model['max_seq_len']:,} tokens"
        for dtype, size in model["cache_bytes"].items()
    ]
    return [
        f"{model['path']}: {model['family']}, {model['parameters']:,} parameters",
        f"weights: {_size(model['weight_bytes'])} in files, "
        f"{_size(model['int8_bytes'])} in memory with int8 weights",
        *caches,
    ]


def _size(count: int) -> str:
    """Bytes with three digits, in powers of 1000."""
    value = float(count)
    for unit in ("bytes", "kB", "MB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} GB"
