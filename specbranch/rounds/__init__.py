"""Rounds whose state lives on the device: static shapes, lengths and decisions in device memory.

``parcel.py`` says what a round is made of, ``program.py``, ``sps.py`` and ``specbranch.py`` are the
rounds, ``runner.py`` (a CPU) and ``graphs.py`` (CUDA) run them, ``policy.py`` is what the engine
sees, and ``pool.py`` keeps runners from request to request.
"""

from __future__ import annotations

from .policy import DeviceRounds
from .pool import PROGRAMS, RunnerPool, why_not_on_device
from .program import RoundProgram
from .runner import EagerRunner, Runner

__all__ = [
    "PROGRAMS",
    "DeviceRounds",
    "EagerRunner",
    "RoundProgram",
    "Runner",
    "RunnerPool",
    "why_not_on_device",
]
