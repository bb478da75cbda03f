"""The ways to decode that ``auto`` chooses from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..session import Settings

CHAINS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # gamma of sps
GROWTHS = (2, 4, 8, 16, 32, 64)  # gamma of specbranch
WIDTHS = (2,)  # k_max of specbranch, below the largest


@dataclass(frozen=True)
class Arm:
    """One way to decode; ``ar`` has gamma 0."""

    policy: str
    gamma: int = 0
    k_max: int = 0
    draft_stage: str = "overlap"

    @property
    def family(self) -> str:
        """Arms that differ in their lengths only."""
        return f"{self.policy} {self.draft_stage}" if self.k_max else self.policy

    def settings(self, given: Settings) -> Settings:
        """``given`` with what this arm decides."""
        if not self.gamma:
            return given
        changed = replace(given, gamma=self.gamma)
        if not self.k_max:
            return changed
        return replace(changed, k_max=self.k_max, draft_stage=self.draft_stage)


def arms_of(settings: Settings) -> list[Arm]:
    """All that ``gamma`` and ``k_max`` of the settings leave room for, ``ar`` first."""
    return list(_arms(settings))


def _arms(settings: Settings) -> Iterator[Arm]:
    yield Arm("ar")
    for gamma in _up_to(settings.gamma, CHAINS):
        yield Arm("sps", gamma)
    for stage in ("overlap", "serial"):
        for gamma in _up_to(settings.gamma, GROWTHS):
            for k_max in _up_to(settings.k_max, WIDTHS):
                yield Arm("specbranch", gamma, k_max, stage)


def _up_to(most: int, values: Sequence[int]) -> list[int]:
    return [value for value in values if value < most] + [most]
