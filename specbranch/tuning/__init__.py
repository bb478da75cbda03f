"""What ``policy="auto"`` knows: costs, acceptance, and which way of decoding they speak for."""

from __future__ import annotations

from .tuner import Arm, Observation, Tuner

__all__ = ["Arm", "Observation", "Tuner"]
