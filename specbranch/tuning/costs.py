"""Seconds that one forward takes, learnt while decoding, by kind of work and number of rows."""

from __future__ import annotations

KEEP = 0.99  # weight of the past once there are many observations
DRIFT = 0.1  # how fast all estimates follow a machine that slows down or speeds up
SURE = 10  # observations of one kind of work after which it tells of the machine's speed
OUTLIER = 2.0  # an observation counts as at most this many times the estimate, or one over it
SLOPE = 0.03  # cost of one more row, as a share, where nothing is known


class Costs:
    """Moving averages that share one factor for the speed of the machine.

    Work that has not been done for a while is judged by what other work takes now: each average is
    kept in units of the common factor, which follows the ratio of what is observed to what was
    expected. It follows fast: a wrong common factor is wrong for all alike, and changes no choice.
    """

    def __init__(self) -> None:
        self._drift = 1.0
        self._known: dict[str, dict[int, float]] = {}
        self._count: dict[tuple[str, int], int] = {}

    def observe(self, kind: str, rows: int, seconds: float, *, tells_speed: bool = True) -> None:
        """One forward of ``rows`` rows took ``seconds``; does that tell how fast the machine is?"""
        known = self._known.setdefault(kind, {})
        before, count = known.get(rows), self._count.get((kind, rows), 0)
        self._count[kind, rows] = count + 1
        if before is None:
            known[rows] = seconds / self._drift
            return
        if before * self._drift <= 0.0:
            known[rows] += (seconds / self._drift - before) / (count + 1)
            return
        ratio = seconds / (before * self._drift)
        if count >= 3:
            ratio = min(OUTLIER, max(1 / OUTLIER, ratio))
        if count >= SURE and tells_speed:
            # Not by its logarithm: what is expected here is that the mean ratio is 1.
            self._drift *= 1.0 + DRIFT * (ratio - 1.0)
        weight = max(1.0 - KEEP, 1.0 / (count + 1))
        known[rows] = before * (1.0 + weight * (ratio - 1.0))

    def knows(self, kind: str) -> bool:
        """Whether any work of this kind was observed."""
        return kind in self._known

    def __call__(self, kind: str, rows: int) -> float:
        """Expected seconds; between and beyond what is known along straight lines."""
        known = self._known.get(kind)
        if not known:
            return 0.0
        if rows in known:
            return known[rows] * self._drift
        below = max((each for each in known if each < rows), default=None)
        above = min((each for each in known if each > rows), default=None)
        return self._drift * _on_line(known, rows, below, above)


def _on_line(known: dict[int, float], rows: int, below: int | None, above: int | None) -> float:
    """The value at ``rows`` of the line through its neighbours; one neighbour: a small slope."""
    if below is None or above is None:
        nearest = above if below is None else below
        assert nearest is not None, "something is known"
        return known[nearest] * max(0.5, 1.0 + SLOPE * (rows - nearest))
    share = (rows - below) / (above - below)
    return known[below] + share * (known[above] - known[below])
