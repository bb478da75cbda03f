"""Tables of bench/auto.py's result: one for each temperature."""

from __future__ import annotations

import math
import statistics
from typing import Any

from report_kernels import commit

Result = dict[str, Any]
CONTROL = "ar again"  # another engine with the same policy: the ratio of the two is noise


def is_ours(result: Result) -> bool:
    """Whether this module knows the kind of result."""
    return result.get("kind") == "auto"


def tables(result: Result) -> str:
    """All tables of one result, and the line that says how they came about."""
    parts = [table(run) for run in result["runs"]]
    return "\n".join([*parts, _provenance(result)])


def table(run: Result) -> str:
    """Every method beside ``ar`` and beside the one that is fastest of those that stay what they
    are, over all prompts and in each pass over them. What follows ``±`` is the standard error, as
    far as prompts differ: two engines that are the same are also now and then two of them apart.
    """
    speeds, passes = run["tokens_per_second"], run.get("passes", 1)
    fixed = {name: speed for name, speed in speeds.items() if not _is_other(name)}
    best = max(fixed, key=lambda name: fixed[name])
    kind = "greedy" if run["temperature"] == 0 else f"temperature {run['temperature']:g}"
    head = f"| {kind}, {run['tokens']} tokens | tokens/s | x `ar` | x best fixed |"
    lines = [head + (" pass by pass |" if passes > 1 else "")]
    lines.append("| --- | ---: | ---: | ---: |" + (" --- |" if passes > 1 else ""))
    for name, speed in speeds.items():
        ratios = f"{speed / speeds['ar']:.3f} | {speed / speeds[best]:.3f}"
        if name != best:
            ratios += f" ± {_error(run['seconds'][best], run['seconds'][name]):.3f}"
        lines.append(f"| `{name}` | {speed:.1f} | {ratios} |")
        if passes > 1:
            by_pass = ", ".join(f"{each:.3f}" for each in _by_pass(run, name, best, passes))
            lines[-1] += f" {by_pass} |"
    if run["different"]:
        lines.append(f"\n**TOKENS OF {', '.join(run['different'])} ARE NOT THOSE OF `ar`.**")
    return "\n".join(lines) + "\n"


def _is_other(name: str) -> bool:
    """Whether it is not one of the choices that ``auto`` is held against."""
    return name.startswith("auto") or name == CONTROL


def _error(theirs: list[float], mine: list[float]) -> float:
    """Standard error of the ratio of sums, of prompts that are drawn independently."""
    ratio = sum(theirs) / sum(mine)
    off = [their - ratio * my for their, my in zip(theirs, mine, strict=True)]
    return math.sqrt(len(off)) * statistics.stdev(off) / sum(mine)


def _by_pass(run: Result, name: str, best: str, passes: int) -> list[float]:
    """Speed of ``name`` over that of ``best`` in each pass."""
    mine, theirs = run["seconds"][name], run["seconds"][best]
    each = len(mine) // passes
    return [
        sum(theirs[idx * each : (idx + 1) * each]) / sum(mine[idx * each : (idx + 1) * each])
        for idx in range(passes)
    ]


def _provenance(result: Result) -> str:
    settings = result["settings"]
    return (
        f"{result['device']}, {result['cores']} cores, float32; {settings['n']} "
        f"{settings['prompts']} prompts{_times(settings)}, at most "
        f"{settings['max_new_tokens']} new tokens, prompt processing included; "
        f"{result['draft']}. Learning is included: each `auto` knows nothing at first. Tokens "
        "are those of `ar`, unless a line above says otherwise.\n\n"
        f"{result['date']}, commit {commit(result)}, torch {result['versions']['torch']}: "
        f"`{result['command']}`\n\n"
    )


def _times(settings: Result) -> str:
    passes = settings.get("passes", 1)
    return f", gone through {passes} times" if passes > 1 else ""
