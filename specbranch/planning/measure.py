"""What forwards cost on this machine: medians of the spans of real requests.

What a round takes beyond them is its ``join``, the mean of what is left in a request, of all
requests the median: hand-over between the lanes, the host's own work, and that on a machine that is
never still two lanes that wait for each other take longer than the longer one does as a rule.

Several engines take turns on the prompts, with different gamma and k_max, so that each number of
rows is met at the lengths that requests have, and a machine that slows down slows all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from ..engine import Engine
from ..lanes import SerialLanes
from ..models.protocol import CausalLM
from ..sampling_params import SamplingParams
from ..timeline import DRAFT, TARGET, Span, Timeline
from .costs import FREE, Costs, Hardware, Table

FEW = 8  # numbers of rows that were met less often are left out, if others were met
# Policy, gamma, k_max. Branches are offered where the draft is unsure, so k_max is more than meets.
ALONE = (("ar", 1, 1), ("sps", 1, 1), ("sps", 2, 1), ("sps", 4, 1), ("sps", 8, 1),
         ("adaedl", 3, 1), ("adaedl", 8, 1), ("ngram", 4, 1))  # fmt: skip
OVERLAPPING = (("specbranch", 2, 2), ("specbranch", 4, 4), ("specbranch", 8, 8),
               ("pearl", 2, 1), ("pearl", 4, 1), ("pearl", 8, 1),
               ("fanout", 2, 4), ("fanout", 6, 8))  # fmt: skip
Times = dict[int, list[float]]  # seconds by rows


def _by_rows() -> Times:
    return defaultdict(list)


@dataclass
class Samples:
    """Seconds that the requests of one policy have taken for this and that."""

    target: Times = field(default_factory=_by_rows)
    read: Times = field(default_factory=_by_rows)
    verify: Times = field(default_factory=_by_rows)
    # (rows, forwards): a stage has a price of its own besides that of its forwards.
    stages: dict[tuple[int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    gaps: list[float] = field(default_factory=list)
    # By request: the spans of each round, and its seconds.
    requests: list[list[tuple[list[Span], float]]] = field(default_factory=list)

    def add(self, timeline: Timeline, *, parallel: bool) -> None:
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
        rounds = _rounds(spans)
        self.gaps += [_gap(each) if parallel else 0.0 for each, _ in rounds]
        if rounds:
            self.requests.append([(each, after - each[0].start) for each, after in rounds])

    def merge(self, other: Samples) -> None:
        """Take what another has."""
        for name in ("target", "read", "verify", "stages"):
            mine, theirs = getattr(self, name), getattr(other, name)
            for key, taken in theirs.items():
                mine[key] += taken

    def draft(self, stage: float) -> Times:
        """Seconds of a draft forward, without its share of a stage."""
        found = _by_rows()
        for (rows, forwards), taken in self.stages.items():
            found[rows] += [max(0.0, seconds - stage) / forwards for seconds in taken]
        return found

    def stage(self) -> float:
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


def summed_up(by_policy: Mapping[str, Samples], *, parallel: bool = False) -> Costs:
    """Medians, in milliseconds; ``parallel``: lanes overlapped.

    What drafting takes is each policy's own. The target is the same for all that draft; where
    nothing is drafted it finds its weights in the caches, and has a table of its own.
    """
    drafting = [samples for samples in by_policy.values() if samples.stages]
    common = Samples()
    for samples in drafting or by_policy.values():
        common.merge(samples)
    common_fields = {**_target(common), **_drafting(common)}
    own: dict[str, dict[str, Any]] = {}
    for policy, samples in by_policy.items():
        fields = _drafting(samples) if samples.stages else _target(samples)
        fields["gap"] = 1e3 * _median(samples.gaps)
        costs = Costs(**{**common_fields, **fields})
        own[policy] = {**fields, "join": _left_over(samples, costs, parallel)}
    return Costs(**common_fields, own=own)


def _left_over(samples: Samples, costs: Costs, parallel: bool) -> float:
    """What a round takes beyond what a replay takes for its forwards, in milliseconds."""
    left = []
    for rounds in samples.requests:
        expected = [_length(spans, costs, parallel) for spans, _ in rounds]
        seconds = sum(seconds for _, seconds in rounds)
        left.append((1e3 * seconds - sum(expected)) / len(rounds))
    return max(0.0, _median(left))


def _target(samples: Samples) -> dict[str, Any]:
    """The fields of ``Costs`` that concern the target."""
    return {"target": _table(samples.target), "verify": _table(samples.verify)}


def _drafting(samples: Samples) -> dict[str, Any]:
    """The fields of ``Costs`` that concern the draft."""
    stage = samples.stage()
    draft = _table(samples.draft(stage) if samples.stages else samples.read)
    read = _table(samples.read) if samples.read else None
    return {"draft": draft, "read": read, "stage": 1e3 * stage}


def _median(taken: Sequence[float]) -> float:
    return median(taken) if taken else 0.0


def _table(by_rows: Times) -> Table:
    """Medians in milliseconds; free where nothing was measured."""
    often = {rows: taken for rows, taken in by_rows.items() if len(taken) >= FEW} or by_rows
    return Table([(rows, 1e3 * median(taken)) for rows, taken in often.items()]) if often else FREE


def _rounds(spans: Sequence[Span]) -> list[tuple[list[Span], float]]:
    """The spans of each round but the last, in the order of their starts, and when it was over."""
    rounds: dict[int, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda each: each.start):
        rounds[span.round].append(span)
    return [(rounds[idx], rounds[after][0].start) for idx, after in pairwise(sorted(rounds))]


def _gap(spans: Sequence[Span]) -> float:
    """How long the draft lane of a parallel round was at work, less its spans."""
    own = [span for span in spans if span.lane == DRAFT]
    if not own:
        return 0.0
    busy = sum(span.seconds for span in own)
    return max(0.0, max(span.end for span in own) - spans[0].start - busy)


def _length(spans: Sequence[Span], costs: Costs, parallel: bool) -> float:
    """What a replay takes the round to be, without its join; milliseconds."""
    verify = sum(costs.verify(span.rows) for span in spans if span.work == "verify")
    lanes = {TARGET: 0.0, DRAFT: costs.gap}
    for span in spans:
        if span.lane == TARGET and span.work != "verify":
            lanes[TARGET] += costs.target(span.rows)
        elif span.work == "read":
            lanes[DRAFT] += costs.read_time(span.rows)
        elif span.lane == DRAFT:
            lanes[DRAFT] += costs.stage + span.forwards * costs.draft(span.rows)
    return verify + (max(lanes.values()) if parallel else sum(lanes.values()))


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
        self._samples: dict[str, dict[str, Samples]] = {
            name: defaultdict(Samples) for name in ("alone", "together")
        }

        def engine(policy: str, gamma: int, k_max: int, serial: bool) -> Engine:
            return Engine(
                target, draft, policy=policy, gamma=gamma, k_max=k_max, epsilon=epsilon,
                verify=verify, threads=threads, rounds="host",
                lanes=SerialLanes(threads) if serial else None,
            )  # fmt: skip

        self._probes = [(engine(*each, True), "alone") for each in ALONE + OVERLAPPING]
        if parallel:
            self._probes += [(engine(*each, False), "together") for each in OVERLAPPING]

    def tasks(self, prompt: Sequence[int], params: SamplingParams) -> list[Callable[[], None]]:
        """One request of each engine, to be run in any order, among other work if need be."""
        return [partial(self._probe, *probe, prompt, params) for probe in self._probes]

    def step(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """All of them."""
        for task in self.tasks(prompt, params):
            task()

    def _probe(
        self, engine: Engine, kind: str, prompt: Sequence[int], params: SamplingParams
    ) -> None:
        timeline = Timeline()
        engine.generate(prompt, params, timeline=timeline)
        self._samples[kind][engine.policy].add(timeline, parallel=kind == "together")

    def warm_up(self, prompt: Sequence[int]) -> None:
        """First requests allocate; they are not counted."""
        for engine, _ in self._probes:
            engine.generate(prompt, SamplingParams(max_new_tokens=4))

    def hardware(self) -> Hardware:
        """Medians of what was measured up to now, in milliseconds."""
        alone, together = (self._samples[kind] for kind in ("alone", "together"))
        return Hardware(
            summed_up(alone),
            summed_up(together, parallel=True) if self.parallel else None,
            self.parallel,
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
