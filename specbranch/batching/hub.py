"""Where the requests of a batch meet: their forwards are collected and run together.

One ``step`` runs one piece of work for each request, usually a round of its policy, as a task. Its
calls of a model become wishes. When nobody can go on without an answer, the hub grants wishes: the
target's forward once every request that is not done waits for it, so that all share it; until
then, and while it runs on a thread of its own, the draft's, all that are wished for at a time.
Each time somebody goes on, and a wish that is there is granted, so there is always an end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from greenlet import getcurrent, greenlet

from .. import ops
from ..drafting import DraftRequest
from ..models.batched import forward_batch
from ..models.protocol import CausalLM, DecoderState, ForwardOutput
from .tasks import Task, Tasks

Done = TypeVar("Done")
Target = TypeVar("Target")
Draft = TypeVar("Draft")


class ForwardWish(NamedTuple):
    """The arguments of a ``DecoderState.forward``."""

    state: DecoderState
    tokens: torch.Tensor
    parents: Sequence[int] | None
    hidden_layers: int


@dataclass
class Shared:
    """Forwards that were shared, and by how many sequences, added up."""

    forwards: int = 0
    rows: int = 0

    def count(self, forwards: int, rows: int) -> None:
        """Some more."""
        self.forwards += forwards
        self.rows += rows

    @property
    def mean_rows(self) -> float:
        """Sequences in a forward."""
        return self.rows / self.forwards if self.forwards else 0.0


class Failure(NamedTuple):
    """An answer that is no answer."""

    error: Exception


Waiting = list[tuple[greenlet, Any]]


@dataclass
class Desk:
    """A model's wishes, and the forwards that were made of them."""

    model: CausalLM
    forwards: Waiting = field(default_factory=list)
    drafts: Waiting = field(default_factory=list)  # DraftRequests
    shared: Shared = field(default_factory=Shared)

    def __bool__(self) -> bool:
        return bool(self.forwards or self.drafts)

    def take(self) -> tuple[Waiting, Callable[[], list[Any]]]:
        """Wishes that go together, and what grants them; a single forward before drafts."""
        if self.forwards:
            layers = self.forwards[0][1].hidden_layers
            taken = [each for each in self.forwards if each[1].hidden_layers == layers]
            self.forwards = [each for each in self.forwards if each[1].hidden_layers != layers]
            return taken, lambda: self._forward([wish for _, wish in taken])
        taken, self.drafts = self.drafts, []
        return taken, lambda: self._draft([wish for _, wish in taken])

    def _forward(self, wishes: list[ForwardWish]) -> list[ForwardOutput]:
        states, tokens, parents, layers = zip(*wishes, strict=True)
        outputs = forward_batch(self.model, states, tokens, parents, hidden_layers=layers[0])
        self.shared.count(1, len(wishes))
        return outputs

    def _draft(self, requests: list[DraftRequest]) -> list[int]:
        if len(requests) == 1:
            taken = [requests[0].state.draft_steps(requests[0])]  # type: ignore[attr-defined]
        else:
            taken = self.model.draft_batch(requests)  # type: ignore[attr-defined]
        self.shared.count(max(taken), sum(taken))
        return taken


class Hub:
    """Collects and grants wishes.

    Args:
        target, draft: the models themselves.
        threads: CPU cores; None: all.
        target_threads: cores of the target's forwards while the draft's run at the same time;
            None: they do not.
    """

    def __init__(
        self,
        target: CausalLM,
        draft: CausalLM | None,
        *,
        threads: int | None,
        target_threads: int | None,
    ) -> None:
        self.target = Desk(target)
        self.draft = Desk(target if draft is None else draft)
        self._threads, self._target_threads = threads or 0, target_threads or 0
        self._worker: ThreadPoolExecutor | None = None
        if target_threads is not None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="specbranch-target")
        self._tasks = Tasks()
        self._rows: list[Task[Any]] = []
        self._running: tuple[Waiting, Future[list[Any]]] | None = None

    # ------------------------------------------------------------------ within a task
    def ask(self, waiting: Waiting, wish: Any) -> Any:
        """Wait until a wish is granted; returns what it brought, or raises."""
        waiting.append((getcurrent(), wish))
        answer = self._tasks.wait()
        if isinstance(answer, Failure):
            raise answer.error
        return answer

    def run(self, target: Callable[[], Target], draft: Callable[[], Draft]) -> tuple[Target, Draft]:
        """The lanes of a request; the hub is its ``Lanes``."""
        drafting = Task(draft)
        self._tasks.start(drafting)
        try:
            verified = target()
        finally:
            # Also when the target failed: the draft's cache must not change any more.
            self._tasks.join(drafting)
        return verified, drafting.result()

    # ------------------------------------------------------------------ outside
    def step(self, work: Sequence[Callable[[], Done]]) -> list[Task[Done]]:
        """Run one piece of work for each request; all of them are over then."""
        tasks = [Task(each) for each in work]
        self._rows = list(tasks)
        for task in tasks:
            self._tasks.start(task)
        try:
            self._tasks.advance()
            while self._grant():
                self._tasks.advance()
        finally:
            self._stop()
        return tasks

    def close(self) -> None:
        """Let the worker go, and what tasks ran on."""
        self._tasks.close()
        if self._worker is not None:
            self._worker.shutdown()

    def _stop(self) -> None:
        """After an interrupt: no forward may run on, no task wait on."""
        if self._running is not None:
            wait([self._running[1]])
            self._running = None
        self._tasks.stop()
        self._rows = []
        for desk in (self.target, self.draft):
            desk.forwards, desk.drafts = [], []

    def _grant(self) -> bool:
        """Run what is due; returns whether there was anything."""
        if self._running is None and self._worker is not None and self._all_wait():
            taken, work = self.target.take()
            self._running = taken, self._worker.submit(self._limited, work, self._target_threads)
        if self.draft:
            taken, work = self.draft.take()
            beside = self._running is not None and not self._running[1].done()
            self._answer(taken, lambda: self._limited(work, 1 if beside else self._threads))
        elif self._running is not None:
            (taken, future), self._running = self._running, None
            self._answer(taken, future.result)
        elif self.target:
            taken, work = self.target.take()
            self._answer(taken, lambda: self._limited(work, self._threads))
        else:
            return False
        return True

    def _all_wait(self) -> bool:
        """Whether every request that is not done waits for the target."""
        num_live = sum(not task.is_over for task in self._rows)
        return 0 < num_live <= len(self.target.forwards)

    @staticmethod
    def _limited(work: Callable[[], list[Any]], threads: int) -> list[Any]:
        with ops.limit_threads(threads):
            return work()

    def _answer(self, taken: Waiting, work: Callable[[], list[Any]]) -> None:
        try:
            answers = work()
        except Exception as error:  # it is that of all who share the forward
            answers = [Failure(error)] * len(taken)
        for (runner, _), answer in zip(taken, answers, strict=True):
            self._tasks.answer(runner, answer)
