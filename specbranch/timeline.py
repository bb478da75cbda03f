"""What the two lanes did and when: spans of work, and what each round came to.

A session writes into a ``Timeline`` that it was given; without one it writes nothing. Read by
``specbranch bench`` (pictures), ``specbranch plan`` (costs) and ``policy="auto"``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

TARGET, DRAFT = "target", "draft"


class Span(NamedTuple):
    """Work of one lane; seconds of ``time.perf_counter``.

    ``work``: ``prefill``, ``forward`` or ``verify`` of the target; ``prefill``, ``read`` (text that
    the draft had not seen), ``chain`` or ``branches`` of the draft. ``rows``: tokens that each of
    its ``forwards`` read.
    """

    lane: str
    work: str
    round: int
    start: float
    end: float
    rows: int
    forwards: int

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


class Round(NamedTuple):
    """Outcome of a round: the chain's length, how much of it was accepted, tokens committed.

    ``position``: committed tokens before it, the prompt included; ``last``: where the last token
    came from, as in ``Committed.origins``.
    """

    position: int
    num_drafted: int
    num_accepted: int
    num_committed: int
    last: str


@dataclass
class Timeline:
    """One request's spans and rounds, in the order in which they ended."""

    spans: list[Span] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)

    def add(self, lane: str, work: str, start: float, *, rows: int, forwards: int = 1) -> None:
        """Work that began at ``start`` and ends now. Both lanes' threads may call this."""
        now = time.perf_counter()
        self.spans.append(Span(lane, work, len(self.rounds), start, now, rows, forwards))

    def extend(self, other: Timeline) -> None:
        """Append what another one holds, its rounds behind those here."""
        first = len(self.rounds)
        self.spans += [span._replace(round=span.round + first) for span in other.spans]
        self.rounds += other.rounds
