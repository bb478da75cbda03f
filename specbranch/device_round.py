"""The former home of ``specbranch.rounds``; what was imported from here still is."""

from __future__ import annotations

from .rounds import PROGRAMS, DeviceRounds, EagerRunner, RoundProgram, Runner

__all__ = ["PROGRAMS", "DeviceRounds", "EagerRunner", "RoundProgram", "Runner"]
