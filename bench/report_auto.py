"""Tables of bench/auto.py's result: one for each temperature."""

from __future__ import annotations

from typing import Any

from report_kernels import commit

Result = dict[str, Any]


def is_ours(result: Result) -> bool:
    """Whether this module knows the kind of result."""
    return result.get("kind") == "auto"


def tables(result: Result) -> str:
    """All tables of one result, and the line that says how they came about."""
    parts = [table(run) for run in result["runs"]]
    return "\n".join([*parts, _provenance(result)])


def table(run: Result) -> str:
    """Every method beside ``ar`` and beside the fastest of those that stay what they are."""
    speeds = run["tokens_per_second"]
    best = max(speed for name, speed in speeds.items() if not name.startswith("auto"))
    kind = "greedy" if run["temperature"] == 0 else f"temperature {run['temperature']:g}"
    lines = [f"| {kind}, {run['tokens']} tokens | tokens/s | x `ar` | x best fixed |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for name, speed in speeds.items():
        ratios = f"{speed / speeds['ar']:.3f} | {speed / best:.3f}"
        lines.append(f"| `{name}` | {speed:.1f} | {ratios} |")
    if run["different"]:
        lines.append(f"\n**TOKENS OF {', '.join(run['different'])} ARE NOT THOSE OF `ar`.**")
    return "\n".join(lines) + "\n"


def _provenance(result: Result) -> str:
    settings = result["settings"]
    return (
        f"{result['device']}, {result['cores']} cores, float32; {settings['n']} "
        f"{settings['prompts']} prompts, at most {settings['max_new_tokens']} new tokens, prompt "
        f"processing included; {result['draft']}. Learning is included: each `auto` knows nothing "
        "at first. Tokens are those of `ar`, unless a line above says otherwise.\n\n"
        f"{result['date']}, commit {commit(result)}, torch {result['versions']['torch']}: "
        f"`{result['command']}`\n\n"
    )
