"""The time of a replayed request: two lanes, one after the other or together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from .costs import Costs, Hardware

TargetResult = TypeVar("TargetResult")
DraftResult = TypeVar("DraftResult")


class Clock:
    """Time as the two lanes pass it; ``now`` is where the lane that works at present is."""

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware
        self.costs: Costs = hardware.alone
        self.now = self.target_busy = self.draft_busy = 0.0

    def spend_target(self, time: float) -> None:
        """The target lane works."""
        self.now += time
        self.target_busy += time

    def spend_draft(self, time: float) -> None:
        """The draft lane works."""
        self.now += time
        self.draft_busy += time

    @contextmanager
    def overlapping(self) -> Iterator[None]:
        """Costs are those of both lanes at work."""
        self.costs = self._hardware.overlapped
        yield
        self.costs = self._hardware.alone

    def run(
        self, target: Callable[[], TargetResult], draft: Callable[[], DraftResult]
    ) -> tuple[TargetResult, DraftResult]:
        """As ``Lanes.run``: both start now, both have ended when it returns."""
        started = self.now
        with self.overlapping():
            self.now += self.costs.gap if self._hardware.parallel else 0.0
            drafted = draft()
            drafted_at = self.now
            if self._hardware.parallel:
                self.now = started
            verified = target()
        self.now = max(self.now, drafted_at)
        return verified, drafted
