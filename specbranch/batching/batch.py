"""The requests of one call: they enter, decode round by round side by side, and leave."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ..request import Event, GenerationResult, Request
from ..session import Committed, Session
from ..stats import Stats
from .hub import Hub
from .tasks import Task


class Rounds(Protocol):
    """What the policies of requests have in common."""

    def round(self, session: Session) -> Committed:
        """Run one round and commit its tokens."""
        ...


@dataclass(frozen=True)
class BatchReport:
    """What a batch came to.

    ``results`` are in the order of the prompts. ``target_forwards`` and ``draft_forwards`` are
    those that were run, each for as many requests as shared it, on average ``target_rows`` and
    ``draft_rows``; prompts, which are read one by one, are not among them.
    """

    results: list[GenerationResult]
    seconds: float
    target_forwards: int
    target_rows: float
    draft_forwards: int
    draft_rows: float

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all requests over the wall time of the whole call."""
        return sum(len(result.tokens) for result in self.results) / self.seconds

    def summary(self) -> str:
        """Two lines for a person."""
        count = sum(len(result.tokens) for result in self.results)
        return (
            f"{count} tokens of {len(self.results)} prompts in {self.seconds:.3f} s, "
            f"{self.tokens_per_second:.1f} tokens/s\n"
            f"{self.target_forwards} target forwards for {self.target_rows:.2f} requests each, "
            f"{self.draft_forwards} draft forwards for {self.draft_rows:.2f}"
        )


@dataclass
class _Row:
    """A request that is being decoded."""

    index: int
    request: Request
    policy: Rounds

    def round(self) -> Committed:
        return self.policy.round(self.request.session)

    def accept(self, committed: Committed) -> list[Event]:
        """The round's events; the last one of a request may be text that was held back."""
        event = self.request.accept(committed)
        return [event, *(self.request.rest() if self.request.finish_reason else [])]


class Batch:
    """Requests that share a hub, at most ``max_batch`` at a time.

    Args:
        hub: where their forwards meet; the batch's own.
        openers: make the requests, in their order, each when its turn comes.
        new_policy: makes a request's policy.
        prompt_lengths: in tokens, for the results of requests that a cancellation meets before
            their turn.
        has_text: whether results have text.
        max_batch: most requests at a time.
    """

    def __init__(
        self,
        hub: Hub,
        openers: Sequence[Callable[[], Request]],
        new_policy: Callable[[], Rounds],
        prompt_lengths: Sequence[int],
        *,
        has_text: bool,
        max_batch: int,
    ) -> None:
        self._hub, self._max_batch, self._new_policy = hub, max_batch, new_policy
        self._queue = deque(enumerate(openers))
        self._live: list[_Row] = []
        self._results = [
            GenerationResult(
                "" if has_text else None, [], [], Stats(prompt_tokens=length), "cancelled"
            )
            for length in prompt_lengths
        ]
        self._started = time.perf_counter()
        self._seconds: float | None = None
        self.cancelled = threading.Event()

    @property
    def goes_on(self) -> bool:
        """Whether there is something to do, and nobody has cancelled it."""
        return bool(self._live or self._queue) and not self.cancelled.is_set()

    def step(self) -> list[tuple[int, Event]]:
        """Let requests enter, and run one round of each; what they added, by prompt.

        Raises:
            ValueError, TypeError, RuntimeError: a request failed; the message names it.
        """
        self._enter()
        tasks = self._hub.step([row.round for row in self._live])
        _raise_failure(self._live, tasks)
        events = []
        for row, task in zip(self._live, tasks, strict=True):
            with _naming(row.index):
                events += [(row.index, event) for event in row.accept(task.result())]
        for row in [row for row in self._live if row.request.finish_reason]:
            self._leave(row)
        return events

    def _enter(self) -> None:
        """Fill up; a request that enters reads its prompt by itself."""
        while self._queue and len(self._live) < self._max_batch:
            index, opener = self._queue.popleft()
            with _naming(index):
                self._open(index, opener)

    def _open(self, index: int, opener: Callable[[], Request]) -> None:
        row = _Row(index, opener(), self._new_policy())
        self._live.append(row)
        row.request.session.prefill()
        row.request.session.lanes = self._hub

    def rest(self) -> list[tuple[int, Event]]:
        """After ``cancel``: text of unfinished requests that was held back."""
        return [(row.index, event) for row in self._live for event in row.request.rest()]

    def _leave(self, row: _Row) -> None:
        row.request.finish_reason = row.request.finish_reason or "cancelled"
        self._results[row.index] = row.request.finish()
        self._live.remove(row)

    def end(self) -> None:
        """Cancel what is not finished."""
        for row in list(self._live):
            self._leave(row)
        self._queue.clear()
        self._hub.close()
        self._seconds = time.perf_counter() - self._started

    def report(self) -> BatchReport:
        """What has come of it; after its end."""
        assert self._seconds is not None, "asked before the end"
        target, draft = self._hub.target.shared, self._hub.draft.shared
        return BatchReport(
            self._results,
            self._seconds,
            target.forwards,
            target.mean_rows,
            draft.forwards,
            draft.mean_rows,
        )


def _raise_failure(rows: Sequence[_Row], tasks: Sequence[Task[Committed]]) -> None:
    """Raise the first error, with the prompts that it is the error of."""
    errors = [task.error for task in tasks if task.error is not None]
    if not errors:
        return
    first = next((each for each in errors if not isinstance(each, Exception)), errors[0])
    if not isinstance(first, Exception):
        raise first  # an interrupt is nobody's error
    pairs = zip(rows, tasks, strict=True)
    raise named(first, [row.index for row, task in pairs if task.error is first]) from first


@contextmanager
def _naming(index: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise named(error, [index]) from error


def named(error: Exception, indices: Sequence[int]) -> Exception:
    """The error of some prompts, its message beginning with their indices."""
    where = ", ".join(f"prompts[{index}]" for index in indices)
    if isinstance(error, (ValueError, TypeError)):
        kind = ValueError if isinstance(error, ValueError) else TypeError
        return kind(f"{where}: {error}")
    return RuntimeError(f"{where}: {type(error).__name__}: {error}")
