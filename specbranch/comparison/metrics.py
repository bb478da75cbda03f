"""Figures made of runs: per method over all of them, per prompt over its repeats.

Tokens are those that count: none behind an end-of-sequence token or past ``max_new_tokens``.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .runs import Run


class Spread(NamedTuple):
    """A median and its quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles; of a single value, three times that."""
    median = statistics.median(values)
    if len(values) < 2:
        return Spread(median, median, median)
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


@dataclass(frozen=True)
class Metrics:
    """What a method made of its runs; None: it has no such thing.

    Args:
        num_runs: requests.
        new_tokens: all that count.
        seconds: all wall time, prompts included.
        tokens_per_second: the one over the other.
        prefill_seconds, time_to_first_token: medians over the runs, seconds.
        token_p50, token_p99: seconds a token, see ``token_gaps``.
        M: drafted tokens that were accepted, a target forward.
        tokens_per_round: all tokens, a target forward.
        tokens_without_bonus: those that the target did not add of its own after an accepted chain.
        RB: main-line drafted tokens that a rejection or a miss threw away, over all of them.
        acceptance_rate: accepted over judged chain tokens.
        branch_hit_rate: branch points whose token was among the candidates.
        bubble: share of the time after the prompt in which the target lane sat idle.
        target_forwards, draft_forwards: of all runs.
    """

    num_runs: int
    new_tokens: int
    seconds: float
    tokens_per_second: float
    prefill_seconds: float
    time_to_first_token: float
    token_p50: float | None
    token_p99: float | None
    M: float
    tokens_per_round: float
    tokens_without_bonus: float
    RB: float | None
    acceptance_rate: float | None
    branch_hit_rate: float | None
    bubble: float | None
    target_forwards: int
    draft_forwards: int


def metrics(runs: Sequence[Run]) -> Metrics:
    """The figures of some runs of one method, at least one."""
    total = total_counters(run.counters for run in runs)
    origins = total_counters(run.origins for run in runs)
    tokens, forwards = sum(origins.values()), total["target_forwards"]
    seconds = sum(run.seconds for run in runs)
    gaps = [gap for run in runs for gap in token_gaps(run)]
    judged = total["accepted_chain"] + total["rejections"]
    return Metrics(
        num_runs=len(runs),
        new_tokens=int(tokens),
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        prefill_seconds=statistics.median(run.prefill_seconds for run in runs),
        time_to_first_token=statistics.median(run.time_to_first_token for run in runs),
        token_p50=float(np.percentile(gaps, 50)) if gaps else None,
        token_p99=float(np.percentile(gaps, 99)) if gaps else None,
        M=(origins.get("chain", 0) + origins.get("branch", 0)) / forwards,
        tokens_per_round=tokens / forwards,
        tokens_without_bonus=(tokens - origins.get("bonus", 0)) / forwards,
        RB=quotient(total["rolled_back"], total["drafted"]),
        acceptance_rate=quotient(total["accepted_chain"], judged),
        branch_hit_rate=quotient(total["branch_hits"], total["branch_points"]),
        bubble=bubble(total),
        target_forwards=int(forwards),
        draft_forwards=int(total["draft_forwards"]),
    )


def total_counters(
    counters: Iterable[dict[str, float]] | Iterable[dict[str, int]],
) -> dict[str, float]:
    """Sums by name."""
    total: dict[str, float] = {}
    for each in counters:
        for name, value in each.items():
            total[name] = total.get(name, 0) + value
    return total


def quotient(part: float, whole: float) -> float | None:
    """``part / whole``, None where there is no whole."""
    return part / whole if whole else None


def bubble(total: dict[str, float]) -> float | None:
    """Idle share of the target lane after the prompt; None where nobody took its time."""
    decode_seconds = total["seconds"] - total["prefill_seconds"]
    if not total["target_seconds"]:
        return None
    return quotient(max(0.0, decode_seconds - total["target_seconds"]), decode_seconds)


def token_gaps(run: Run) -> list[float]:
    """Seconds a token, of every token but the first round's (they have the time to first token).

    The gap between the outputs of two rounds is shared equally by the tokens of the later one.
    """
    gaps: list[float] = []
    for before, after in zip(run.arrivals, run.arrivals[1:], strict=False):
        gaps += [(after.seconds - before.seconds) / after.num_tokens] * after.num_tokens
    return gaps


def speed_ratios(runs: Sequence[Run], baseline: Sequence[Run]) -> dict[int, float]:
    """Per prompt: tokens/s of a method over the baseline's; of repeats the median counts."""
    mine, theirs = median_speeds(runs), median_speeds(baseline)
    return {prompt: speed / theirs[prompt] for prompt, speed in mine.items()}


def median_speeds(runs: Sequence[Run]) -> dict[int, float]:
    """Per prompt: median tokens/s over its repeats."""
    found: dict[int, list[float]] = {}
    for run in runs:
        found.setdefault(run.prompt, []).append(run.tokens_per_second)
    return {prompt: statistics.median(speeds) for prompt, speeds in found.items()}


def acceptance_by_position(runs: Sequence[Run]) -> list[tuple[int, int]]:
    """For each position of a chain: how many tokens were judged there, how many accepted.

    A token behind a rejected one was never judged.
    """
    rounds = [outcome for run in runs for outcome in run.rounds]
    longest = max((outcome.num_drafted for outcome in rounds), default=0)
    return [
        (
            sum(each.num_drafted > at and each.num_accepted >= at for each in rounds),
            sum(each.num_accepted > at for each in rounds),
        )
        for at in range(longest)
    ]


def accepted_lengths(runs: Sequence[Run]) -> list[int]:
    """How many rounds accepted 0, 1, 2, .. drafted tokens: of the chain, and a branch's head."""
    lengths = [
        outcome.num_accepted + (outcome.last == "branch") for run in runs for outcome in run.rounds
    ]
    return [lengths.count(length) for length in range(max(lengths, default=-1) + 1)]
