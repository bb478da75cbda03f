"""Tables of bench/versus.py's result: one for each subject, and what a forward of m rows costs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from report_kernels import commit

from specbranch.comparison.metrics import spread

Result = dict[str, Any]
Row = dict[str, Any]
BASELINES = ("transformers generate", "ar")


def is_ours(result: Result) -> bool:
    """Whether this module knows the kind of result."""
    return result.get("kind") == "versus"


def tables(result: Result) -> str:
    """All tables of one result, and the line that says how they came about."""
    parts = [_subject(subject) for subject in result["subjects"]]
    return "\n".join([*parts, _provenance(result)]) + "\n"


def _subject(subject: Row) -> str:
    """Table, absentees, equality and T_target(m) of one model."""
    parts = [_table(subject), _equality(subject), _curve(subject), *_absent(subject)]
    return "\n\n".join(parts) + "\n"


def _table(subject: Row) -> str:
    head = [subject["name"], "draft", "tokens/s", *(f"x `{name}`" for name in BASELINES)]
    head += ["tokens per target forward", "output as `ar`'s"]
    lines = [_line(head), _line(["---", "---"] + ["---:"] * (len(head) - 2))]
    speeds = {method["name"]: _speeds(subject, method["name"]) for method in subject["methods"]}
    for method in subject["methods"]:
        mine = speeds[method["name"]]
        ratios = [_ratio(mine, speeds[name]) for name in BASELINES]
        cells = [f"`{method['method']}`", method["draft"], _spread(list(mine.values()), 1)]
        lines.append(
            _line([*cells, *ratios, _per_forward(subject, method), _same(subject, method)])
        )
    return "\n".join(lines)


def _runs(subject: Row, name: str) -> list[Row]:
    return [run for run in subject["runs"] if run["method"] == name]


def _speeds(subject: Row, name: str) -> dict[int, float]:
    """Tokens/s by prompt; of several repeats the median."""
    found: dict[int, list[float]] = {}
    for run in _runs(subject, name):
        found.setdefault(run["prompt"], []).append(run["new_tokens"] / run["seconds"])
    return {prompt: statistics.median(values) for prompt, values in found.items()}


def _ratio(mine: dict[int, float], theirs: dict[int, float]) -> str:
    if mine is theirs:
        return "1"
    return _spread([speed / theirs[prompt] for prompt, speed in mine.items()], 2)


def _spread(values: list[float], digits: int) -> str:
    """Median over prompts (quartiles)."""
    median, low, high = (f"{value:.{digits}f}" for value in spread(values))
    return median if len(values) < 2 else f"{median} ({low} - {high})"


def _per_forward(subject: Row, method: Row) -> str:
    counters = [run["counters"] for run in _runs(subject, method["name"]) if run["counters"]]
    forwards = sum(each["target_forwards"] for each in counters)
    return f"{sum(each['committed'] for each in counters) / forwards:.2f}" if forwards else ""


def _same(subject: Row, method: Row) -> str:
    """Of how many requests, and how far apart the target saw the two tokens where they part."""
    total = len(_runs(subject, method["name"]))
    found = [each for each in subject["differences"] if each["method"] == method["name"]]
    gaps = [each["gap"] for each in found if each["gap"] is not None]
    apart = f", {max(gaps):.2g} apart" if gaps else ""
    return f"{total - len(found)} of {total}{apart}"


def _equality(subject: Row) -> str:
    ours = [each for each in subject["differences"] if each["is_ours"]]
    if ours:
        return (
            f"**OUTPUT OF {len(ours)} OF OUR OWN REQUESTS DIFFERS FROM `ar`, see the result file.**"
        )
    theirs = [each for each in subject["differences"] if not each["is_ours"]]
    words = "Greedy output of every policy equals `ar`, token for token."
    if not theirs:
        return f"{words} So does everybody else's."
    return (
        f'{words} Another library\'s leaves it in {len(theirs)} requests: "apart" says by how many '
        "logits the target prefers one token to the other where that happens."
    )


def _curve(subject: Row) -> str:
    found = subject["target_ms"]
    times = found["ms"]
    cells = ", ".join(f"{rows}: {ms:.1f}" for rows, ms in times.items())
    last = list(times)[-1]
    return (
        f"T_target(m), ms by rows of a forward behind {found['prefix']} tokens: {cells}; "
        f"T({last}) / T(1) = {times[last] / times['1']:.1f}."
    )


def _absent(subject: Row) -> Iterable[str]:
    """One line for each reason."""
    names: dict[tuple[str, str], list[str]] = {}
    for each in subject["absent"]:
        names.setdefault((each["method"], each["reason"]), []).append(each["draft"])
    for (method, reason), drafts in names.items():
        drafted = ", ".join(filter(None, drafts))
        yield f"Not run: `{method}`{f' ({drafted})' if drafted else ''}: {reason}."


def _provenance(result: Result) -> str:
    settings, versions = result["settings"], result["versions"]
    prompts = "; ".join(
        f"{subject['name']}: {subject['prompts']}, {min(subject['prompt_tokens'])} - "
        f"{max(subject['prompt_tokens'])} tokens, {subject['parameters'] / 1e6:.0f} million "
        f"parameters, logits of the two libraries at most {subject['logits_apart']:.1g} apart"
        for subject in result["subjects"]
    )
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers"))
    if versions.get("flashspec"):
        packages += f", flashspec {versions['flashspec']}"
    return (
        f"{result['device']}, {settings['threads']} of {result['cores']} cores, float32, greedy; "
        f"{settings['n']} {settings['prompts']} prompts, at most {settings['max_new_tokens']} new "
        "tokens, prompt processing included; medians over prompts (quartiles). Other libraries run "
        f"with their defaults, prompt lookup with {settings['lookup_tokens']} tokens. {prompts}."
        "\n\n"
        f"{result['date']}, commit {commit(result)}, {packages}: `{result['command']}`\n"
    )


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
