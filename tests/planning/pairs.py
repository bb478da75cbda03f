"""Pairs to record, and the real engine's counters to hold a replay against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from specbranch import Engine, SamplingParams
from specbranch.lanes import SerialLanes
from specbranch.planning import Costs, Hardware, Trace, Traces, record_trace
from specbranch.planning.simulate import Simulator
from specbranch.session import Settings
from specbranch.stats import Stats
from specbranch.testing.table_model import TableModel

# Exact whenever the text is; the others also count what siblings drafted.
ON_TEXT = (
    "rounds", "target_forwards", "committed", "accepted", "accepted_chain", "rejections",
    "branch_points", "branch_hits", "new_tokens",
)  # fmt: skip
COUNTERS = (
    *ON_TEXT, "draft_forwards", "drafted", "rolled_back", "pruned", "sibling_tokens",
)  # fmt: skip
UNIT = Hardware(Costs.of_ratio(10.0))


@dataclass(frozen=True)
class Case:
    """One policy with its settings."""

    policy: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        values = " ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.policy} {values}".strip()


def specbranch(gamma: int, k_max: int, epsilon: float, draft_stage: str = "overlap") -> Case:
    return Case(
        "specbranch",
        {"gamma": gamma, "k_max": k_max, "epsilon": epsilon, "draft_stage": draft_stage},
    )


# Growth of a single branch, or one that epsilon does not stop, is known from the trace.
EXACT = [
    Case("ar"),
    *(Case(policy, {"gamma": gamma}) for policy in ("sps", "pearl", "ngram") for gamma in (1, 4)),
    Case("sps", {"gamma": 7, "epsilon": 0.9}),
    Case("adaedl", {"gamma": 4, "epsilon": 0.1}),
    Case("adaedl", {"gamma": 7, "epsilon": 0.5}),
    Case("fanout", {"gamma": 3, "k_max": 3, "epsilon": 0.1}),
    Case("fanout", {"gamma": 4, "k_max": 8, "epsilon": 0.4}),
    Case("fanout", {"gamma": 2, "k_max": 1, "epsilon": 0.0}),
    *(
        specbranch(*each, stage)
        for stage in ("overlap", "serial")
        for each in ((3, 3, 0.0), (1, 8, 0.0), (2, 1, 0.3), (7, 1, 0.6))
    ),
]
ESTIMATED = [
    specbranch(*each, stage)
    for stage in ("overlap", "serial")
    for each in ((4, 6, 0.4), (5, 4, 0.2))
]


def tables(seed: int) -> tuple[TableModel, TableModel]:
    """A target and a draft that is the target with noise."""
    target = TableModel.random(8, seed, scale=2.0)
    noise = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(seed + 9))
    return target, TableModel(target.table + 1.2 * noise)


def record(
    pair: tuple[Any, Any], prompt: list[int], params: SamplingParams, verify: str, **more: Any
) -> Trace:
    lanes = SerialLanes(1)
    return record_trace(*pair, prompt, params, verify=verify, lanes=lanes, **more)


def replayed(trace: Trace, case: Case, verify: str = "rejection", **how: Any) -> Stats:
    simulator = Simulator(Traces([trace], **how), UNIT)
    return simulator.each(case.policy, Settings(verify=verify, **case.settings))[0]


def decoded(
    pair: tuple[Any, Any], prompt: list[int], params: SamplingParams, case: Case, verify: str
) -> Stats:
    engine = Engine(
        *pair, policy=case.policy, verify=verify, lanes=SerialLanes(1), threads=1, rounds="host",
        **case.settings,
    )  # fmt: skip
    return engine.generate(prompt, params).stats


def differences(
    got: Stats, want: Stats, names: tuple[str, ...] = COUNTERS
) -> dict[str, tuple[int, int]]:
    pairs = {name: (getattr(got, name), getattr(want, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
