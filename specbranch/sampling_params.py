"""What one request asks for: length, temperature, cutoffs, seed and stop conditions."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class SamplingParams:
    """Settings of one request; validates itself.

    Args:
        max_new_tokens: most tokens to generate, at least 1.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k most likely tokens, 0 keeps all. Ties with the k-th are kept.
        top_p: keep the smallest set of tokens whose probability reaches it, in (0, 1].
        min_p: drop tokens less likely than ``min_p`` times the most likely one, in [0, 1].
        seed: key of the counter-based random numbers, 0 .. 2**63 - 1. Same seed, same output.
        stop: strings that end the text; the text ends right before the first of them.
        ignore_eos: go on after an end-of-sequence token.

    Raises:
        TypeError, ValueError: naming the field, what it was and what it must be.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop: str | tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        check_int("max_new_tokens", self.max_new_tokens, 1)
        check_int("top_k", self.top_k, 0)
        check_int("seed", self.seed, 0, MAX_SEED)
        check_float("temperature", self.temperature, 0.0, math.inf)
        check_float("top_p", self.top_p, 0.0, 1.0)
        check_float("min_p", self.min_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise ValueError("top_p was 0.0; it must be greater than 0 and at most 1")
        if 0.0 < self.temperature < 1e-4:
            raise ValueError(
                f"temperature was {self.temperature}; it must be 0 (greedy) or at least 1e-4"
            )
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        for text in stop:
            if not isinstance(text, str):
                raise TypeError(f"stop contained {type(text).__name__}; it must contain strings")
            if not text:
                raise ValueError("stop contained an empty string; it must contain non-empty ones")
        object.__setattr__(self, "stop", stop)

    @property
    def has_cutoff(self) -> bool:
        """Whether top-k, top-p or min-p remove anything (they do nothing to a greedy choice)."""
        cuts = self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0
        return self.temperature > 0.0 and cuts


def check_int(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise unless ``value`` is an integer within ``low .. high``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} was {value!r}; it must be an integer")
    if value < low or (high is not None and value > high):
        span = f"at least {low}" if high is None else f"in {low} .. {high}"
        raise ValueError(f"{name} was {value}; it must be {span}")


def check_float(name: str, value: object, low: float, high: float) -> None:
    """Raise unless ``value`` is a finite number within ``low .. high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} was {value!r}; it must be a number")
    if not math.isfinite(value) or value < low or value > high:
        span = f"at least {low}" if math.isinf(high) else f"in {low} .. {high}"
        raise ValueError(f"{name} was {value}; it must be finite and {span}")
