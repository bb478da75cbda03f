"""Policies: what the target verifies in a round and what the draft grows meanwhile.

A policy is an object with ``needs_draft``, ``overlaps`` and ``round(session) -> Committed``. The
verbs it is written in are those of ``specbranch.session.Session``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..predictor import Predictor
from ..session import Committed, Session
from .ar import Autoregressive
from .specbranch import SpecBranch
from .sps import SpeculativeSampling


class Policy(Protocol):
    """One decoding method; a new object for each request."""

    needs_draft: bool
    overlaps: bool  # whether both models run at the same time

    def round(self, session: Session) -> Committed:
        """Run one round and commit its tokens."""
        ...


POLICIES: dict[str, Callable[[Predictor | None], Policy]] = {
    "ar": lambda predictor: Autoregressive(),
    "sps": lambda predictor: SpeculativeSampling(),
    "specbranch": SpecBranch,
}

__all__ = ["POLICIES", "Autoregressive", "Policy", "SpecBranch", "SpeculativeSampling"]
