"""What forwards cost on this machine: medians of the spans of real requests.

Several engines take turns on the prompts, with different gamma and k_max, so that each number of
rows is met at the lengths that requests have, and a machine that slows down slows all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import numpy as np

from ..engine import Engine
from ..lanes import SerialLanes
from ..models.protocol import CausalLM
from ..sampling_params import SamplingParams
from ..timeline import TARGET, Span, Timeline
from .costs import FREE, Costs, Hardware, Table

FEW = 5  # numbers of rows that were met less often are left out, if others were met
# Policy, gamma, k_max. Branches are offered where the draft is unsure, so k_max is more than meets.
ALONE = (("ar", 1, 1), ("sps", 1, 1), ("sps", 2, 1), ("sps", 4, 1), ("sps", 8, 1),
         ("adaedl", 8, 1), ("ngram", 4, 1))  # fmt: skip
OVERLAPPING = (("specbranch", 2, 2), ("specbranch", 4, 4), ("specbranch", 8, 8),
               ("pearl", 2, 1), ("pearl", 4, 1), ("pearl", 8, 1), ("fanout", 4, 4))  # fmt: skip


@dataclass
class Samples:
    """Seconds of forwards by rows, and of rounds by policy."""

    target: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    read: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    verify: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    # (rows, forwards): a stage has a price of its own besides that of its forwards.
    stages: dict[tuple[int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    joins: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, policy: str, timeline: Timeline) -> None:
        """Take the spans of one request."""
        spans = [span for span in timeline.spans if span.work != "prefill"]
        for span in spans:
            if span.lane == TARGET:
                by_rows = self.verify if span.work == "verify" else self.target
                by_rows[span.rows].append(span.seconds)
            elif span.work == "read":
                self.read[span.rows].append(span.seconds)
            else:
                self.stages[span.rows, span.forwards].append(span.seconds)
        self.joins[policy] += _idle(spans)

    def costs(self) -> Costs:
        """Medians, in milliseconds."""
        stage = self._stage()
        draft: dict[int, list[float]] = defaultdict(list)
        for (rows, forwards), taken in self.stages.items():
            draft[rows] += [max(0.0, seconds - stage) / forwards for seconds in taken]
        return Costs(
            target=_table(self.target),
            draft=_table(draft or self.read),
            read=_table(self.read),
            verify=_table(self.verify),
            joins={name: 1e3 * median(taken) for name, taken in self.joins.items() if taken},
            stage=1e3 * stage,
        )

    def _stage(self) -> float:
        """Where the line through the stages of one row, by their forwards, begins."""
        medians = {
            forwards: median(taken)
            for (rows, forwards), taken in self.stages.items()
            if rows == 1 and len(taken) >= FEW
        }
        if len(medians) < 2:
            return 0.0
        _, start = np.polyfit(list(medians), list(medians.values()), 1)
        return min(max(0.0, float(start)), min(medians.values()) / 2)


def _table(by_rows: dict[int, list[float]]) -> Table:
    """Medians in milliseconds; free where nothing was measured."""
    often = {rows: taken for rows, taken in by_rows.items() if len(taken) >= FEW} or by_rows
    return Table([(rows, 1e3 * median(taken)) for rows, taken in often.items()]) if often else FREE


def _idle(spans: Sequence[Span]) -> list[float]:
    """For each round but the last: seconds in which neither lane worked."""
    rounds: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        rounds[span.round].append(span)
    starts = {idx: min(span.start for span in each) for idx, each in rounds.items()}
    return [
        starts[after] - starts[idx] - _busy(rounds[idx]) for idx, after in pairwise(sorted(starts))
    ]


def _busy(spans: Iterable[Span]) -> float:
    """Seconds in which at least one of the spans was open."""
    total, until = 0.0, -np.inf
    for span in sorted(spans, key=lambda each: each.start):
        total += max(0.0, span.end - max(span.start, until))
        until = max(until, span.end)
    return float(total)


class Measurement:
    """Engines that take turns; ``step`` runs each on one prompt, ``hardware`` sums up.

    Args:
        target, draft: the pair, on CPU.
        parallel: whether policies that overlap have their default lanes, or take turns.
        verify, epsilon: as for ``Engine``. With epsilon 0 stages have their full length.
        threads: CPU cores to use, all by default.

    Raises:
        ValueError: a model is not on CPU.
    """

    def __init__(
        self,
        target: CausalLM,
        draft: CausalLM,
        *,
        parallel: bool = True,
        verify: str = "rejection",
        epsilon: float = 0.0,
        threads: int | None = None,
    ) -> None:
        for name, model in (("target", target), ("draft", draft)):
            if model.device.type != "cpu":
                raise ValueError(
                    f"{name} was on {model.device}; costs can be measured on cpu only, since a "
                    "device's work goes on behind the host's spans: give them instead"
                )
        self.parallel = parallel
        self._samples = {name: Samples() for name in ("alone", "together")}

        def engine(policy: str, gamma: int, k_max: int, serial: bool) -> Engine:
            return Engine(
                target, draft, policy=policy, gamma=gamma, k_max=k_max, epsilon=epsilon,
                verify=verify, threads=threads, rounds="host",
                lanes=SerialLanes(threads) if serial else None,
            )  # fmt: skip

        self._probes = [(engine(*each, True), "alone") for each in ALONE + OVERLAPPING]
        if parallel:
            self._probes += [(engine(*each, False), "together") for each in OVERLAPPING]

    def step(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """One request of each engine."""
        for engine, kind in self._probes:
            timeline = Timeline()
            engine.generate(prompt, params, timeline=timeline)
            self._samples[kind].add(engine.policy, timeline)

    def warm_up(self, prompt: Sequence[int]) -> None:
        """First requests allocate; they are not counted."""
        for engine, _ in self._probes:
            engine.generate(prompt, SamplingParams(max_new_tokens=4))

    def hardware(self) -> Hardware:
        """Medians of what was measured up to now, in milliseconds."""
        alone, together = (self._samples[kind] for kind in ("alone", "together"))
        return Hardware(
            alone.costs(), together.costs() if self.parallel else None, parallel=self.parallel
        )


def measure_costs(
    target: CausalLM,
    draft: CausalLM,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    parallel: bool = True,
    verify: str = "rejection",
    threads: int | None = None,
) -> Hardware:
    """Costs of the pair on this machine, in milliseconds; see ``Measurement``."""
    if not prompts:
        raise ValueError("prompts was empty; it must have at least one")
    measurement = Measurement(target, draft, parallel=parallel, verify=verify, threads=threads)
    measurement.warm_up(prompts[0])
    for prompt in prompts:
        measurement.step(prompt, params)
    return measurement.hardware()
