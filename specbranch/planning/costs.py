"""What forwards cost on some hardware, in any unit of time, and how its two lanes run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

Points = Sequence[tuple[int, float]]


class Table:
    """Time of a forward by the tokens it reads (rows): linear between the points that are given.

    Beyond the last point it goes on as between the last two; below the first it is flat.

    Args:
        points: rows and time; at least one.

    Raises:
        ValueError: no points, rows below 1 or twice, or a time that is negative or not finite.
    """

    def __init__(self, points: Points) -> None:
        self.points = sorted((int(rows), float(time)) for rows, time in points)
        rows = [row for row, _ in self.points]
        if not rows or rows[0] < 1 or len(set(rows)) < len(rows):
            raise ValueError(f"points had rows {rows}; they must be different, each at least 1")
        for row, time in self.points:
            if not math.isfinite(time) or time < 0.0:
                raise ValueError(f"points had {time} for {row} rows; it must be finite and >= 0")
        self._known: dict[int, float] = {}

    def __call__(self, rows: int) -> float:
        """Time of one forward over ``rows`` tokens."""
        if rows not in self._known:
            self._known[rows] = self._at(rows)
        return self._known[rows]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and other.points == self.points

    def __hash__(self) -> int:
        return hash(tuple(self.points))

    def __repr__(self) -> str:
        return f"Table({','.join(f'{rows}:{time:g}' for rows, time in self.points)})"

    def _at(self, rows: int) -> float:
        points = self.points
        if rows <= points[0][0] or len(points) == 1:
            return points[0][1]
        upper = next((idx for idx, (row, _) in enumerate(points) if row >= rows), len(points) - 1)
        (first, low), (second, high) = points[upper - 1], points[upper]
        return max(0.0, low + (high - low) * (rows - first) / (second - first))


def parse_table(text: str, name: str) -> Table:
    """``"1:20,5:21"``, or one number for any number of rows.

    Raises:
        ValueError: it is neither; the message starts with ``name``.
    """
    try:
        if ":" not in text:
            return Table([(1, float(text))])
        pairs = [part.split(":") for part in text.split(",")]
        return Table([(int(rows), float(time)) for rows, time in pairs])
    except ValueError as error:
        raise ValueError(
            f"{name} was {text!r}; it must be one time, or ROWS:TIME,ROWS:TIME,.. ({error})"
        ) from error


FREE = Table([(1, 0.0)])


@dataclass(frozen=True)
class Costs:
    """Times of one way to run the lanes, all in the same unit.

    Args:
        target: of a target forward, by rows: the chain and the token before it.
        draft: of a draft forward with the draws behind it, by rows: branches, or tokens to read.
        read: of a draft forward that only reads; None: as ``draft``.
        verify: of the verification, by rows; the target lane's.
        join: what else a round costs on the host: commit, hand-over between lanes.
        stage: of each drafting stage, whatever its length.
        gap: of a round that overlaps: time in which the draft lane waits for the host.
        own: for some policies, fields that differ, by name.
    """

    target: Table
    draft: Table
    read: Table | None = None
    verify: Table = FREE
    join: float = 0.0
    stage: float = 0.0
    gap: float = 0.0
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("join", "stage", "gap"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0.0:
                raise ValueError(f"{name} was {value}; it must be finite and at least 0")

    @classmethod
    def of_ratio(cls, ratio: float) -> Costs:
        """The unit is a draft forward; a target forward takes ``ratio`` of them (the paper's c)."""
        if not math.isfinite(ratio) or ratio <= 0.0:
            raise ValueError(f"ratio was {ratio}; it must be finite and greater than 0")
        return cls(Table([(1, ratio)]), Table([(1, 1.0)]))

    def read_time(self, rows: int) -> float:
        """Of a draft forward that only reads."""
        return (self.read or self.draft)(rows)

    def of(self, policy: str) -> Costs:
        """Those of one policy."""
        return replace(self, own={}, **self.own.get(policy, {}))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        names = [each.name for each in fields(self) if each.name != "own"]
        plain = {name: _plain(getattr(self, name)) for name in names}
        own = {
            policy: {name: _plain(value) for name, value in given.items()}
            for policy, given in self.own.items()
        }
        return plain | {"own": own}


def _plain(value: Any) -> Any:
    return dict(value.points) if isinstance(value, Table) else value


@dataclass(frozen=True)
class Hardware:
    """What a pair costs somewhere.

    Args:
        alone: while the other model waits.
        together: while both run; None: as ``alone``.
        parallel: whether the two lanes run at the same time; if not, the work of a round is done
            one after the other, as by ``SerialLanes``.
    """

    alone: Costs
    together: Costs | None = None
    parallel: bool = True

    def of(self, policy: str) -> Hardware:
        """Costs of one policy."""
        together = None if self.together is None else self.together.of(policy)
        return Hardware(self.alone.of(policy), together, self.parallel)

    @property
    def overlapped(self) -> Costs:
        """Costs while both lanes have work."""
        return self.together if self.parallel and self.together is not None else self.alone

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        together = None if self.together is None else self.together.to_dict()
        return {"parallel": self.parallel, "alone": self.alone.to_dict(), "together": together}
