"""Code that can stop in the middle and go on later, all on one thread: greenlets with results.

Policies are plain synchronous code that calls a model. Run as a task, such a call stops the task
until somebody has the answer, and the policy does not know.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from greenlet import GreenletExit, getcurrent, greenlet

Done = TypeVar("Done")


class Task(Generic[Done]):
    """One piece of work, with its result or its error."""

    def __init__(self, work: Callable[[], Done]) -> None:
        self._work = work
        self._result: Done | None = None
        self.error: BaseException | None = None
        self.is_over = False
        self.waiting_for_it: greenlet | None = None

    def run(self) -> None:
        """Do the work; never raises."""
        try:
            self._result = self._work()
        except BaseException as error:  # it is raised where the result is asked for
            self.error = error
        self.is_over = True

    def result(self) -> Done:
        """What the work has returned, or its error raised."""
        assert self.is_over, "asked before it was over"
        if self.error is not None:
            raise self.error
        return cast(Done, self._result)


def _thread() -> greenlet:
    """What stands for the thread: unlike its number, no later thread gets the same."""
    found = getcurrent()
    while found.parent is not None:
        found = found.parent
    return found


class Tasks:
    """Runs tasks until each of them waits or is over.

    Greenlets are kept for further tasks, since a new one costs a fresh stack, until ``close``.
    """

    def __init__(self) -> None:
        self._home: greenlet | None = None  # None: not within ``advance``
        self._stopping = False
        self._ready: deque[tuple[greenlet, Any]] = deque()
        self._busy: dict[greenlet, Task[Any]] = {}
        self._idle: list[greenlet] = []
        self._thread = _thread()

    def start(self, task: Task[Any]) -> None:
        """Let a task begin when the others wait."""
        thread = _thread()
        if self._thread is not thread:  # greenlets stay in the thread that made them
            self._thread, self._idle = thread, []
        runner = self._idle.pop() if self._idle else greenlet(self._run)
        runner.parent = self._home or getcurrent()
        self._busy[runner] = task
        self._ready.append((runner, None))

    def _run(self, _: None) -> None:
        """A greenlet's life: one task after the other.

        While it idles, its frame must name neither a task, which would keep a request's caches,
        nor itself: the garbage collector does not look into the frames of greenlets.
        """
        while True:
            task = self._busy[getcurrent()]
            task.run()
            if task.waiting_for_it is not None:
                self._ready.append((task.waiting_for_it, None))
            del self._busy[getcurrent()], task
            self._idle.append(getcurrent())
            getcurrent().parent.switch()

    def advance(self) -> None:
        """Run what can run; called outside of tasks."""
        self._home = getcurrent()
        try:
            while self._ready:
                runner, answer = self._ready.popleft()
                runner.switch(answer)
        finally:
            self._home = None

    def wait(self) -> Any:
        """Within a task: let the others run until ``answer`` is called; returns the answer."""
        if self._stopping:  # it is to end, and has asked for more
            raise GreenletExit
        return getcurrent().parent.switch()

    def answer(self, runner: greenlet, answer: Any) -> None:
        """Let a task that waits go on."""
        self._ready.append((runner, answer))

    def join(self, task: Task[Any]) -> None:
        """Within a task: wait for another."""
        if not task.is_over:
            task.waiting_for_it = getcurrent()
            self.wait()

    def stop(self) -> None:
        """End those that are not over, where they wait."""
        self._stopping = True
        try:
            for runner in list(self._busy):
                # Again, if the end itself has waited for something.
                while runner in self._busy and not runner.dead:
                    runner.throw()
        finally:
            self._stopping = False
            self._busy.clear()
            self._ready.clear()

    def close(self) -> None:
        """Let the greenlets go: their frames hold this object, which holds them."""
        self._idle.clear()
