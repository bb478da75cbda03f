"""Result files to the tables of the pages below, between their markers.

    python bench/report.py                  rewrite the pages
    python bench/report.py --check          exit 1 if a page is not what would be written
    python bench/report.py --print F.json   print the tables of one result file
    python bench/report.py --plots DIR      draw what can be drawn of bench/results/ into DIR

A marker is ``<!-- results: NAME -->`` .. ``<!-- /results -->``; NAME.json lies in bench/results/.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import report_ablation
import report_auto
import report_kernels
import report_plots
import report_versus
from report_kernels import commit

from specbranch.comparison.metrics import bubble, quotient, spread, total_counters

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGES = ("README.md", "docs/auto.md", "docs/kernels.md", "docs/method.md")
MARKED = re.compile(r"(<!-- results: ([\w.-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)
BASELINES = ("ar", "hf-assisted")

Run = dict[str, Any]


def main() -> int:
    """Write, check or print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--print", type=Path, metavar="F", dest="printed")
    parser.add_argument("--plots", type=Path, metavar="DIR")
    args = parser.parse_args()
    if args.printed is not None:
        sys.stdout.write(tables(json.loads(args.printed.read_text(encoding="utf-8"))))
        return 0
    if args.plots is not None:
        report_plots.draw_all(RESULTS, args.plots)
        return 0
    changed = False
    for page in (ROOT / name for name in PAGES):
        before = page.read_text(encoding="utf-8")
        after = filled(before)
        changed |= before != after
        if not args.check:
            page.write_text(after, encoding="utf-8")
    return int(args.check and changed)


def filled(text: str) -> str:
    """``text`` with every marked place holding the tables of its result file."""

    def fill(found: re.Match[str]) -> str:
        result = json.loads((RESULTS / f"{found[2]}.json").read_text(encoding="utf-8"))
        return found[1] + tables(result) + found[3]

    return MARKED.sub(fill, text)


def tables(result: dict[str, Any]) -> str:
    """All tables of one result, and the line that says how they came about."""
    for module in (report_kernels, report_ablation, report_versus, report_auto):
        if module.is_ours(result):
            return module.tables(result)
    temperatures = sorted({run["temperature"] for run in result["runs"]})
    parts = [_table(result, temperature) for temperature in temperatures]
    return "\n".join([*parts, _provenance(result)]) + "\n"


def _table(result: dict[str, Any], temperature: float) -> str:
    methods: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in result["runs"]:
        if run["temperature"] == temperature:
            methods[run["method"]][run["prompt"]] = run
    baselines = [name for name in BASELINES if name in methods]
    kind = "greedy" if temperature == 0 else f"temperature {temperature:g}"
    head = [kind, "tokens/s", *(f"x `{name}`" for name in baselines)]
    head += ["tokens per target forward", "M", "RB", "branch hits", "bubble"]
    summary = _summary(result, temperature)
    head += [name for name, column in summary.items() if column]
    lines = [_row(head), _row(["---"] + ["---:"] * (len(head) - 1))]
    for name, by_prompt in methods.items():
        cells = [f"`{name}`", f"{_tokens_per_second(by_prompt):.0f}"]
        cells += [_ratio(by_prompt, methods[baseline]) for baseline in baselines]
        cells += _metrics(list(by_prompt.values()))
        lines.append(_row(cells + [column.get(name, "") for column in summary.values() if column]))
    return "\n".join(lines) + "\n"


def _summary(result: dict[str, Any], temperature: float) -> dict[str, dict[str, str]]:
    """Columns by method that only some results have; empty where none of the methods has one."""
    rows = [row for row in result.get("summary", ()) if row["temperature"] == temperature]
    times = {row["method"]: row["host_seconds_per_round"] for row in rows}
    return {
        "of zero-bubble limit": {row["method"]: f"{row['zero_bubble_share']:.2f}" for row in rows},
        "host us per round": {name: f"{1e6 * val:.0f}" for name, val in times.items() if val},
    }


def _tokens_per_second(by_prompt: dict[int, Run]) -> float:
    """All new tokens over all the time, prompts included."""
    runs = by_prompt.values()
    return sum(run["new_tokens"] for run in runs) / sum(run["seconds"] for run in runs)


def _ratio(by_prompt: dict[int, Run], baseline: dict[int, Run]) -> str:
    """Median over prompts of the ratio of speeds, and its quartiles."""
    if by_prompt is baseline:
        return "1"
    ratios = [
        (run["new_tokens"] / run["seconds"])
        / (baseline[idx]["new_tokens"] / baseline[idx]["seconds"])
        for idx, run in by_prompt.items()
    ]
    median, low, high = spread(ratios)
    return f"{median:.2f}" if len(ratios) < 2 else f"{median:.2f} ({low:.2f} - {high:.2f})"


def _metrics(runs: list[Run]) -> list[str]:
    if not runs[0]["counters"]:
        return ["", "", "", "", ""]
    total = total_counters(run["counters"] for run in runs)
    figures = [
        quotient(total["committed"], total["target_forwards"]),
        quotient(total["accepted"], total["target_forwards"]),
        quotient(total["rolled_back"], total["drafted"]),
        quotient(total["branch_hits"], total["branch_points"]),
        bubble(total),
    ]
    return ["" if figure is None else f"{figure:.2f}" for figure in figures]


def _provenance(result: dict[str, Any]) -> str:
    versions, settings = result["versions"], result["settings"]
    lines = [
        f"{_device(result)}; "
        f"{len(result['prompt_tokens'])} {settings['prompts']} prompts, "
        f"{settings['max_new_tokens']} new tokens; ratios are medians over prompts (quartiles), "
        f"prompt processing included. {_equality(result)}",
        _inflation(result),
        f"{result['date']}, commit {commit(result)}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}: `{result['command']}`",
    ]
    return "\n\n".join(line.strip() for line in lines if line) + "\n"


def _device(result: dict[str, Any]) -> str:
    device, settings = result["device"], result["settings"]
    where = f"{device['cpu']}, {settings['threads']} of {device['cores']} cores"
    gpu = device.get("gpu")
    if gpu is not None:
        where = f"{gpu['name']}, driver {gpu['driver']}"
    dtype = settings.get("dtype", "float32")
    return where if dtype == "float32" and gpu is None else f"{where}, {dtype}"


def _equality(result: dict[str, Any]) -> str:
    """What the comparison of greedy outputs with ``ar``'s found."""
    if all(temperature != 0 for temperature in result["settings"]["temperatures"]):
        return ""
    ours = [found for found in result["differs_from_ar"] if found["is_ours"]]
    ties = [found for found in ours if found.get("is_tie")]
    num_theirs = len(result["differs_from_ar"]) - len(ours)
    equal = "Greedy output of every policy equals `ar`, token for token."
    if ties:
        equal = (
            f"Greedy output of every policy equals `ar`, but in {len(ties)} runs from a position "
            f"on where the target's two best logits are a tie "
            f"({max(found['gap'] for found in ties):.2g} apart at most)."
        )
    if len(ties) < len(ours):
        equal = "GREEDY OUTPUT DIFFERS FROM `ar`, see the result file."
    return equal + (f" transformers' differs in {num_theirs} runs." if num_theirs else "")


def _inflation(result: dict[str, Any]) -> str:
    """That the pair is not what its cost says, and what it is."""
    pair = result.get("inflated")
    if pair is None:
        return ""
    sizes = [
        f"{name} {model['shape']} ({model['parameters'] / 1e6:.0f} million parameters: "
        f"{model['layers']} layers, width {model['hidden']}, vocabulary {model['vocab']})"
        for name, model in pair.items()
    ]
    return (
        f"**Inflated pair**: {' and '.join(sizes)}. Small models embedded in matrices of these "
        "sizes, their function unchanged: the cost is that of the sizes, the acceptance and the "
        "text are those of the small pair."
    )


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
