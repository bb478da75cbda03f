"""Which device a name means, and what keeps CUDA from being used on this machine."""

from __future__ import annotations

import ctypes
import sys

import torch

from . import ops


def resolve_device(device: str | torch.device, name: str = "device") -> torch.device:
    """The device that ``device`` names, if models can run there.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        name: of the argument, for messages.

    Raises:
        ValueError: another kind of device, or one that cannot be used here; the message says why.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{name} was {device!r}; it must be cpu, cuda or cuda:N") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} was {device!r}; it must be cpu, cuda or cuda:N")
    if found.type == "cpu":
        return found
    reasons = why_no_cuda()
    if reasons:
        raise ValueError(f"{name} was {str(device)!r}, but {', and '.join(reasons)}; use 'cpu'")
    count = torch.cuda.device_count()
    if (found.index or 0) >= count:
        raise ValueError(f"{name} was {str(device)!r}, but torch sees {count} CUDA devices here")
    return found


def why_no_cuda() -> list[str]:
    """What is missing for CUDA: a driver, a device, torch's half, ours; empty: nothing."""
    hardware = _why_no_device()
    reasons = [] if hardware is None else [hardware]
    if torch.version.cuda is None:
        reasons.append(f"torch {torch.__version__} is built without CUDA")
    elif hardware is None and not torch.cuda.is_available():
        reasons.append(f"torch {torch.__version__} cannot use the CUDA device (an old driver?)")
    if not ops.backends()["cuda"]:
        reasons.append("specbranch is built without its CUDA kernels (build it where nvcc is)")
    return reasons


def _why_no_device() -> str | None:
    """Asked of the driver itself: a torch built without CUDA cannot tell."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "no NVIDIA driver was found"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or not count:
        return "no CUDA device was found"
    return None
