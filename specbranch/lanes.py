"""Where and when the two models run: both lanes on one thread, or the draft on a thread of its own.

A lane is one model's stream of work. ``run`` starts both, waits for both, and returns both
results. On CPU ``ThreadLanes`` gives the draft one core and the target the others;
``SerialLanes`` runs one after the other with all cores, which is what policies without overlap
want and what makes a debugger's life easy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

from . import ops

TargetResult = TypeVar("TargetResult")
DraftResult = TypeVar("DraftResult")


class Lanes(Protocol):
    """Runs the work of the two models of one round."""

    def run(
        self, target: Callable[[], TargetResult], draft: Callable[[], DraftResult]
    ) -> tuple[TargetResult, DraftResult]:
        """Run both to the end; an exception of either is raised when both have ended."""
        ...


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class SerialLanes:
    """The draft first, then the target, on the caller's thread with ``threads`` cores."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or num_cores()

    def run(
        self, target: Callable[[], TargetResult], draft: Callable[[], DraftResult]
    ) -> tuple[TargetResult, DraftResult]:
        """Run the draft, then the target."""
        with ops.limit_threads(self.threads):
            drafted = draft()
            return target(), drafted


def _on_one_core(work: Callable[[], DraftResult]) -> DraftResult:
    with ops.limit_threads(1):
        return work()


class ThreadLanes:
    """The target on the caller's thread, the draft on a worker that lives as long as this."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = cores = threads or num_cores()
        # Of two cores the target uses both: its helper claims what the draft's steps leave over.
        self.target_threads = cores - 1 if cores > 2 else cores
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="specbranch-draft")

    def run(
        self, target: Callable[[], TargetResult], draft: Callable[[], DraftResult]
    ) -> tuple[TargetResult, DraftResult]:
        """Run both at the same time."""
        future = self._worker.submit(_on_one_core, draft)
        try:
            with ops.limit_threads(self.target_threads):
                verified = target()
        finally:
            # Also when the target failed: its caches and the draft's must not change any more.
            error = future.exception()
        if error is not None:
            raise error
        return verified, future.result()


class StreamLanes:
    """The lanes of CUDA devices: each on a stream of its own, the draft's with high priority.

    The host feeds both streams at the same time, the draft's from a worker thread; the caller's
    stream waits for both. Target and draft may be on different devices.
    """

    def __init__(self, target: torch.device, draft: torch.device) -> None:
        self._target = torch.cuda.Stream(target)  # type: ignore[no-untyped-call]
        self._draft = torch.cuda.Stream(draft, priority=-1)  # type: ignore[no-untyped-call]
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="specbranch-draft")

    def run(
        self, target: Callable[[], TargetResult], draft: Callable[[], DraftResult]
    ) -> tuple[TargetResult, DraftResult]:
        """Run both at the same time."""
        callers = [torch.cuda.current_stream(lane.device) for lane in (self._target, self._draft)]
        self._target.wait_stream(callers[0])
        self._draft.wait_stream(callers[1])
        future = self._worker.submit(_on_stream, self._draft, draft)
        try:
            verified = _on_stream(self._target, target)
        finally:
            # Also when the target failed: its caches and the draft's must not change any more.
            error = future.exception()
        callers[0].wait_stream(self._target)
        callers[1].wait_stream(self._draft)
        if error is not None:
            raise error
        return verified, future.result()


def _on_stream(stream: torch.cuda.Stream, work: Callable[[], DraftResult]) -> DraftResult:
    with torch.cuda.stream(stream):
        return work()
