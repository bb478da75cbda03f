"""What one request of one method came to: plain values, written to and read from ``bench.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..timeline import Round, Span

DIGITS = 7  # of seconds, in files


class Arrival(NamedTuple):
    """A round's output: seconds after the start, and how many tokens of it count."""

    seconds: float
    num_tokens: int


@dataclass(frozen=True)
class Run:
    """One request of one method. Seconds count from its start.

    ``origins``: counted tokens by where they came from; ``counters``: those of ``Stats``;
    ``rounds``: outcomes, cut where the output ends; ``spans``: what the lanes did, of the first
    prompt only.
    """

    method: str
    prompt: int
    repeat: int
    tokens: list[int]
    seconds: float
    prefill_seconds: float
    arrivals: list[Arrival]
    origins: dict[str, int]
    counters: dict[str, float]
    rounds: list[Round] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Counted tokens over the whole wall time, prompt included."""
        return len(self.tokens) / self.seconds

    @property
    def time_to_first_token(self) -> float:
        """Seconds until the first round's tokens were there, prompt included."""
        return self.arrivals[0].seconds

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Run:
        """What ``to_dict`` gave."""
        tuples = {"arrivals": Arrival, "rounds": Round, "spans": Span}
        lists = {key: [kind(*row) for row in found[key]] for key, kind in tuples.items()}
        return cls(**found | lists)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, times to a tenth of a microsecond."""
        found = dict(self.__dict__)
        found["counters"] = {key: round(val, DIGITS) for key, val in self.counters.items()}
        for key in ("arrivals", "spans"):
            found[key] = [
                [round(val, DIGITS) if isinstance(val, float) else val for val in row]
                for row in found[key]
            ]
        found["rounds"] = [list(row) for row in self.rounds]
        return found | {
            "seconds": round(self.seconds, DIGITS),
            "prefill_seconds": round(self.prefill_seconds, DIGITS),
        }
