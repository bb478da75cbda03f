"""Timing of one call on a CPU or a CUDA device, shared by the kernel benchmarks.

On CUDA a call is timed within replays of a captured graph, so that launch cost on the host is left
out, or, ``eager``, call by call: with ``cupyx.profiler.benchmark`` where CuPy is installed, else
with CUDA events. Calls rotate among sets of inputs, so that what is read is not what the call
before has left in the L2 cache; ``num_sets`` says how many sets that takes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], object]

MAX_SETS = 256  # more would take longer to make than to measure; such inputs are called warm
GRAPH_MICROSECONDS = 2000.0  # what one replay should take at least, to stand above its own start


@dataclass(frozen=True)
class Clock:
    """How to time: where, in which way, and how long.

    Args:
        device: "cpu" or a CUDA device.
        eager: single calls instead of graph replays, on CUDA.
        repeats: most timings of one call.
        seconds: after which no further timing of a call is begun.
    """

    device: str
    eager: bool = False
    repeats: int = 50
    seconds: float = 0.3

    @property
    def way(self) -> str:
        """In words, for the record."""
        if self.device == "cpu":
            return "host clock"
        if not self.eager:
            return "graph replays"
        return "events" if _cupy_benchmark() is None else "cupyx.profiler.benchmark"

    def quartiles(self, calls: Sequence[Call]) -> list[float]:
        """Microseconds of a call: 25 %, 50 %, 75 %; ``calls`` do the same on other inputs."""
        for idx in range(3):  # compiles, allocates, chooses
            calls[idx % len(calls)]()
        timed = self._on_cpu if self.device == "cpu" else self._on_cuda
        taken = timed(calls)
        return statistics.quantiles(taken, n=4) if len(taken) > 1 else taken * 3

    # ------------------------------------------------------------------ the ways
    def _on_cpu(self, calls: Sequence[Call]) -> list[float]:
        taken: list[float] = []
        end = time.perf_counter() + self.seconds
        for idx in range(self.repeats):
            started = time.perf_counter()
            calls[idx % len(calls)]()
            taken.append(1e6 * (time.perf_counter() - started))
            if started > end:
                break
        return taken

    def _on_cuda(self, calls: Sequence[Call]) -> list[float]:
        if not self.eager:
            return self._replays(calls)
        benchmark = _cupy_benchmark()
        if benchmark is None:
            return self._events(calls)
        once = _rotating(calls)
        found = benchmark(once, (), n_repeat=self.repeats, n_warmup=5, max_duration=self.seconds)
        return [1e6 * float(seconds) for seconds in found.gpu_times.ravel()]

    def _replays(self, calls: Sequence[Call]) -> list[float]:
        """Whole rotations of the calls in one graph."""
        estimate = statistics.median(self._events(calls[:3]))
        rounds = math.ceil(GRAPH_MICROSECONDS / max(estimate, 1.0) / len(calls))
        per_graph = max(1, min(rounds, 20)) * len(calls)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            calls[0]()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for idx in range(per_graph):
                calls[idx % len(calls)]()
        graph.replay()
        return [taken / per_graph for taken in self._events([graph.replay])]

    def _events(self, calls: Sequence[Call]) -> list[float]:
        taken: list[float] = []
        end = time.perf_counter() + self.seconds
        for idx in range(self.repeats):
            begin, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            calls[idx % len(calls)]()
            done.record()
            done.synchronize()
            taken.append(1e3 * begin.elapsed_time(done))
            if time.perf_counter() > end and len(taken) >= 5:
                break
        return taken

    # ------------------------------------------------------------------ the device
    def copy_bandwidth(self, num_bytes: int) -> float:
        """Bytes a second of a copy of ``num_bytes`` within the device, read and written."""
        source = torch.randn(num_bytes // 4, device=self.device)
        target = torch.empty_like(source)
        median = self.quartiles([lambda: target.copy_(source)])[1]
        return 2 * num_bytes / (median * 1e-6)

    def num_sets(self, case_bytes: int, quick: bool = False) -> int:
        """Sets of inputs that together are twice as large as the L2 cache, at most MAX_SETS."""
        if quick or self.device == "cpu":
            return 1
        return max(1, min(MAX_SETS, math.ceil(2 * self.cache_bytes() / case_bytes)))

    def cache_bytes(self) -> int:
        """Size of the L2 cache; 0 on a CPU, where nothing is rotated."""
        if self.device == "cpu":
            return 0
        return int(torch.cuda.get_device_properties(self.device).L2_cache_size)

    def num_launches(self, call: Call) -> int | None:
        """Kernels, copies and fills that one call launches, as the profiler sees; None on a CPU."""
        if self.device == "cpu":
            return None
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        return sum(event.device_type.name == "CUDA" for event in profile.events())


def _rotating(calls: Sequence[Call]) -> Call:
    """One call that does the work of the next of ``calls`` each time."""
    state = {"next": 0}

    def once() -> object:
        idx = state["next"]
        state["next"] = (idx + 1) % len(calls)
        return calls[idx]()

    return once


def _cupy_benchmark() -> Callable[..., Any] | None:
    try:
        from cupyx.profiler import benchmark
    except ImportError:
        return None
    found: Callable[..., Any] = benchmark
    return found
