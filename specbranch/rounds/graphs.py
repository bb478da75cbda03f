"""Rounds as CUDA graphs: one where both models share a device, several where they do not.

Nothing here has run on a GPU yet. What makes a round fit to be captured: every tensor that outlives
it is allocated before; what is allocated inside lives in the graph's own pool and is never read
from outside; no launch depends on a value that the host reads.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from itertools import groupby

import torch

from ..sampling_params import SamplingParams
from .parcel import Send, Step, Work
from .program import RoundProgram
from .runner import Runner
from .streams import Streams

WARM_UP_ROUNDS = 2  # libraries choose, load and allocate on their first calls


class CudaRunner(Runner):
    """Launches rounds on an engine's streams; the host reads reports from pinned memory.

    The device never waits for the host: it always has a round more than the host has read. The
    report ring must have more rows than ``ahead``.
    """

    ahead = 2

    def __init__(self, program: RoundProgram, streams: Streams) -> None:
        super().__init__(program)
        self._streams = streams
        report = program.state.report
        assert len(report) > self.ahead, "the host would read a row that is being written"
        self._host, self._host_clock = _pinned_like(report), _pinned_like(program.clock)
        self._done = [
            torch.cuda.Event()  # type: ignore[no-untyped-call]
            for _ in range(len(report))
        ]
        self._launched = 0
        # Rounds ahead may still run when the last reference goes: not into memory that is free.
        weakref.finalize(self, streams.synchronize)
        self._warm_up()
        self._capture()

    def _warm_up(self) -> None:
        self._streams.wait_for_callers()
        with self._streams.current():
            self.program.load([0, 0], self.program.params)
        for _ in range(WARM_UP_ROUNDS):
            self._streams.run(self._steps)
        self._streams.synchronize()

    @abstractmethod
    def _capture(self) -> None:
        """Capture what ``_replay`` launches."""

    def _graph_of(self, stream: torch.cuda.Stream, launches: Callable[[], None]) -> GraphLaunch:
        graph = torch.cuda.CUDAGraph()
        try:
            # "thread_local": another thread may allocate meanwhile.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                launches()
        except Exception as error:
            raise RuntimeError(
                f"a round of {type(self.program).__name__} could not be captured as a CUDA graph "
                f"({_first_line(error)}); rounds='host' does without"
            ) from error
        return GraphLaunch(graph, stream)

    def _fetch_report(self) -> None:
        # The whole ring: where the row lies is known to the device only. A later round writes the
        # same numbers over those that the host reads.
        self._host.copy_(self.program.state.report, non_blocking=True)
        self._host_clock.copy_(self.program.clock, non_blocking=True)

    def begin(self, tokens: list[int], params: SamplingParams) -> None:
        """Start a request behind what the caller's streams were given."""
        self.drain()
        self._launched = 0
        self._streams.wait_for_callers()
        with self._streams.current():
            self.program.load(tokens, params)

    def drain(self) -> None:
        """Wait for rounds that nobody will read."""
        self._streams.synchronize()

    def launch(self) -> None:
        """One more round; does not wait for the device."""
        self._replay()
        self._done[self._launched % len(self._done)].record(self._streams.target)
        self._launched += 1

    @abstractmethod
    def _replay(self) -> None:
        """Launch a round, its report included."""

    def report(self, number: int) -> list[int]:
        """Wait for round ``number`` since ``begin`` and read what it reported."""
        self._done[number % len(self._done)].synchronize()
        report: list[int] = self._host[number % len(self._host), 0].tolist()
        return report

    def target_seconds(self) -> float:
        """As the last round that has ended found it: a round more than was read, at times."""
        return int(self._host_clock[0]) / 1e9


class GraphLaunch:
    """A captured graph and the stream that it is replayed on."""

    def __init__(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> None:
        self._graph, self._stream = graph, stream

    def __call__(self) -> None:
        """Replay it."""
        with torch.cuda.stream(self._stream):
            self._graph.replay()


class GraphRunner(CudaRunner):
    """Both models on one device: the whole round is one graph, its sides two branches of it."""

    def _capture(self) -> None:
        self._graph = self._graph_of(self._streams.target, self._round)

    def _round(self) -> None:
        self._streams.run(self._steps)
        with torch.cuda.stream(self._streams.target):
            self._fetch_report()

    def _replay(self) -> None:
        self._graph()


class PairRunner(CudaRunner):
    """Two devices: a graph for what a side does between two parcels, launched by the host.

    One graph over both would save launches, but torch's graphs are of one device, and copies
    between devices cannot be captured everywhere.
    """

    def _capture(self) -> None:
        self._actions: list[Callable[[], None]] = []
        for side, steps in groupby(self._steps, key=_side_of):
            if side == "":
                self._actions += [
                    partial(self._streams.send, step.parcel)
                    for step in steps
                    if isinstance(step, Send)
                ]
            else:
                works = [step.run for step in steps if isinstance(step, Work)]
                stream = self._streams.target if side == "target" else self._streams.draft
                self._actions.append(self._graph_of(stream, partial(_run_all, works)))

    def _replay(self) -> None:
        for action in self._actions:
            action()
        with torch.cuda.stream(self._streams.target):
            self._fetch_report()


def _pinned_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)


def _side_of(step: Step) -> str:
    return step.side if isinstance(step, Work) else ""


def _run_all(works: list[Callable[[], None]]) -> None:
    with torch.inference_mode():
        for work in works:
            work()


def _first_line(error: BaseException) -> str:
    """What went wrong first: ending a broken capture fails too, with a message of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).strip().partition("\n")[0] or type(error).__name__
