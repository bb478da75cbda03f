"""The best setting of each policy on given hardware, by replaying all settings of a grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product

from ..session import Settings
from .costs import Hardware
from .simulate import REPLAYED, STAGED, Prediction, Simulator
from .trace import Traces


@dataclass(frozen=True)
class Grid:
    """Settings to try; a policy takes those that it knows.

    Args:
        gammas, k_maxes, epsilons, draft_stages: values of the settings of these names.
    """

    gammas: Sequence[int] = (1, 2, 3, 4, 6, 8)
    k_maxes: Sequence[int] = (1, 2, 4, 8)
    epsilons: Sequence[float] = (0.0, 0.1, 0.2, 0.4, 0.6)
    draft_stages: Sequence[str] = ("overlap", "serial")

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name):
                raise ValueError(f"{each.name} was empty; it must have at least one value")
        for values in product(self.gammas, self.k_maxes, self.epsilons, self.draft_stages):
            _settings(*values)  # checks them

    def settings(self, policy: str, draft_stage: str) -> Iterator[Settings]:
        """All that make a difference to ``policy``."""
        plain = Settings()
        gammas = (plain.gamma,) if policy == "ar" else self.gammas
        k_maxes = self.k_maxes if policy in STAGED else (plain.k_max,)
        knows = policy in (*STAGED, "adaedl")
        epsilons = self.epsilons if knows else (plain.epsilon,)
        for gamma, k_max, epsilon in product(gammas, k_maxes, epsilons):
            yield _settings(gamma, k_max, epsilon, draft_stage)


def _settings(gamma: int, k_max: int, epsilon: float, draft_stage: str) -> Settings:
    return Settings(gamma=gamma, k_max=k_max, epsilon=epsilon, draft_stage=draft_stage)


@dataclass(frozen=True)
class Plan:
    """What to expect: the best setting of each policy, best policy first."""

    best: list[Prediction]
    acceptance_rate: float
    num_tried: int = 0


def plan(
    traces: Traces,
    hardware: Hardware,
    *,
    policies: Sequence[str] = REPLAYED,
    grid: Grid | None = None,
) -> Plan:
    """Predict the speedup of each policy at its best setting.

    ``specbranch`` and ``fanout`` are tried with both draft stages, ``specbranch`` also with H-RAD
    where the traces have its classes; each way has a row of its own.

    Raises:
        ValueError: a policy cannot be replayed, or the traces do not reach far enough.
    """
    grid, simulator = grid or Grid(), Simulator(traces, hardware)
    best, num_tried = [], 0
    for policy in policies:
        for stage, hrad in _ways(policy, grid, traces.origin.hrad):
            found = [
                simulator.run(policy, settings, hrad=hrad)
                for settings in grid.settings(policy, stage)
            ]
            num_tried += len(found)
            best.append(max(found, key=lambda each: each.speedup))
    best.sort(key=lambda each: -each.speedup)
    return Plan(best, traces.acceptance_rate, num_tried)


def _ways(policy: str, grid: Grid, hrad: bool) -> Iterator[tuple[str, bool]]:
    """Draft stage, and whether H-RAD is asked."""
    stages = grid.draft_stages if policy in STAGED else (Settings().draft_stage,)
    yield from product(stages, (False, True) if hrad and policy == "specbranch" else (False,))
