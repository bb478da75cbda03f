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
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import report_kernels
import report_plots

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGES = ("README.md", "docs/kernels.md")
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
    if report_kernels.is_ours(result):
        return report_kernels.tables(result)
    temperatures = sorted({run["temperature"] for run in result["runs"]})
    parts = [_table(result["runs"], temperature) for temperature in temperatures]
    return "\n".join([*parts, _provenance(result)]) + "\n"


def _table(runs: list[Run], temperature: float) -> str:
    methods: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in runs:
        if run["temperature"] == temperature:
            methods[run["method"]][run["prompt"]] = run
    baselines = [name for name in BASELINES if name in methods]
    kind = "greedy" if temperature == 0 else f"temperature {temperature:g}"
    head = [kind, "tokens/s", *(f"x `{name}`" for name in baselines)]
    head += ["tokens per target forward", "M", "RB", "branch hits", "bubble"]
    lines = [_row(head), _row(["---"] + ["---:"] * (len(head) - 1))]
    for name, by_prompt in methods.items():
        cells = [f"`{name}`", f"{_tokens_per_second(by_prompt):.0f}"]
        cells += [_ratio(by_prompt, methods[baseline]) for baseline in baselines]
        lines.append(_row(cells + _metrics(list(by_prompt.values()))))
    return "\n".join(lines) + "\n"


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
    median = statistics.median(ratios)
    if len(ratios) < 2:
        return f"{median:.2f}"
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{median:.2f} ({low:.2f} - {high:.2f})"


def _metrics(runs: list[Run]) -> list[str]:
    if not runs[0]["counters"]:
        return ["", "", "", "", ""]
    total: dict[str, float] = defaultdict(float)
    for run in runs:
        for name, value in run["counters"].items():
            total[name] += value
    decode_seconds = total["seconds"] - total["prefill_seconds"]
    return [
        _quotient(total["committed"], total["target_forwards"]),
        _quotient(total["accepted"], total["target_forwards"]),
        _quotient(total["rolled_back"], total["drafted"]),
        _quotient(total["branch_hits"], total["branch_points"]),
        _quotient(decode_seconds - total["target_seconds"], decode_seconds),
    ]


def _quotient(part: float, whole: float) -> str:
    return f"{part / whole:.2f}" if whole else ""


def _provenance(result: dict[str, Any]) -> str:
    device, versions, settings = result["device"], result["versions"], result["settings"]
    commit = (result["commit"] or "unknown")[:10]
    if result["uncommitted_changes"]:
        commit += " with uncommitted changes"
    different = [found for found in result["differs_from_ar"] if not found["is_ours"]]
    equal = "Greedy output of every policy equals `ar`, token for token."
    if any(found["is_ours"] for found in result["differs_from_ar"]):
        equal = "GREEDY OUTPUT DIFFERS FROM `ar`, see the result file."
    if different:
        equal += f" transformers' differs in {len(different)} runs."
    if all(temperature != 0 for temperature in settings["temperatures"]):
        equal = ""
    lines = [
        f"{device['cpu']}, {settings['threads']} of {device['cores']} cores; "
        f"{len(result['prompt_tokens'])} {settings['prompts']} prompts, "
        f"{settings['max_new_tokens']} new tokens; ratios are medians over prompts (quartiles), "
        f"prompt processing included. {equal}",
        f"{result['date']}, commit {commit}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}: `{result['command']}`",
    ]
    return "\n\n".join(line.strip() for line in lines) + "\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
