"""Policies: what the target verifies in a round and what the draft grows meanwhile.

A policy is an object with ``needs_draft``, ``overlaps`` and ``round(session) -> Committed``. The
verbs it is written in are those of ``specbranch.session.Session``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from ..lanes import Lanes
from ..predictor import Predictor
from ..session import Committed, Session, Settings
from .adaedl import AdaEdl
from .ar import Autoregressive
from .auto import DEFAULTS as AUTO_DEFAULTS
from .auto import Auto
from .fanout import FanOut
from .lookahead import Lookahead
from .ngram import PromptLookup
from .pearl import Pearl
from .specbranch import SpecBranch
from .sps import SpeculativeSampling


class Policy(Protocol):
    """One decoding method; a new object for each request."""

    needs_draft: bool
    overlaps: bool  # whether both models run at the same time

    def round(self, session: Session) -> Committed:
        """Run one round and commit its tokens."""
        ...


@runtime_checkable
class TreePolicy(Policy, Protocol):
    """A policy whose target reads more than a chain of gamma."""

    def target_nodes(self, settings: Settings) -> int:
        """Most nodes of one target forward, the last committed token included."""
        ...


@runtime_checkable
class LearningPolicy(Policy, Protocol):
    """A policy that takes what it has learnt into the next request."""

    def begin(self, settings: Settings, lanes: Lanes) -> None:
        """Get ready to learn; once an engine. ValueError: the settings are not for it."""
        ...

    def wants_draft(self) -> bool:
        """Whether the draft should read a prompt at once; else it does so when it is first used."""
        ...

    def renew(self) -> Policy:
        """The policy object of the next request."""
        ...


POLICIES: dict[str, Callable[[Predictor | None], Policy]] = {
    "ar": lambda predictor: Autoregressive(),
    "sps": lambda predictor: SpeculativeSampling(),
    "specbranch": SpecBranch,
    "pearl": lambda predictor: Pearl(),
    "adaedl": lambda predictor: AdaEdl(),
    "lookahead": lambda predictor: Lookahead(),
    "ngram": lambda predictor: PromptLookup(),
    "fanout": lambda predictor: FanOut(),
    "auto": lambda predictor: Auto(),
}
# Settings that are not Settings' own defaults.
DEFAULTS: dict[str, dict[str, int | str]] = {"auto": AUTO_DEFAULTS}

__all__ = [
    "DEFAULTS",
    "POLICIES",
    "AdaEdl",
    "Auto",
    "Autoregressive",
    "FanOut",
    "LearningPolicy",
    "Lookahead",
    "Pearl",
    "Policy",
    "PromptLookup",
    "SpecBranch",
    "SpeculativeSampling",
    "TreePolicy",
]
