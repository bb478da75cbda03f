"""Tables of bench/ablation.py's result: what each part of the method is worth."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from report_kernels import commit

from specbranch.comparison.metrics import spread

Result = dict[str, Any]
Row = dict[str, Any]
PAIRS = {"aligned": "the demo pair", "worse": "its target with the worse draft"}


def is_ours(result: Result) -> bool:
    """Whether this module knows the kind of result."""
    return result.get("kind") == "ablation"


def tables(result: Result) -> str:
    """All tables of one result, and the line that says how they came about."""
    parts = [_acceptance(result)]
    for pair, words in PAIRS.items():
        parts.append(f"**Each method at its fastest setting, {words}**\n\n{_best(result, pair)}")
    parts.append(f"**All at the same setting**\n\n{_same(result)}")
    parts.append(f"**From fast to frugal** (worse draft, HumanEval, greedy)\n\n{_frontier(result)}")
    parts.append(f"**The threshold**\n\n{_sweep(result, 'epsilon')}")
    parts.append(f"**The number of branches**\n\n{_sweep(result, 'k_max')}")
    parts.append(f"**H-RAD by the layers it reads**\n\n{_layers(result)}")
    if result["measured"]:
        parts.append(f"**By the clock, here**\n\n{_measured(result)}")
    return "\n".join([*parts, _provenance(result)]) + "\n"


def _scenes(result: Result) -> list[tuple[str, float]]:
    """Prompts and temperature, in the order of the run."""
    return list(dict.fromkeys((row["prompts"], row["temperature"]) for row in result["rows"]))


def _acceptance(result: Result) -> str:
    scenes = _scenes(result)
    lines = _head(["acceptance per token", *map(_scene, scenes)])
    for pair, words in PAIRS.items():
        found = {
            (row["prompts"], row["temperature"]): row["acceptance_rate"]
            for row in result["acceptance"]
            if row["pair"] == pair
        }
        lines.append(_line([words, *(f"{found[scene]:.2f}" for scene in scenes)]))
    return "\n".join(lines) + "\n"


def _best(result: Result, pair: str) -> str:
    scenes = _scenes(result)
    lines = _head(["speedup, RB, gamma", *map(_scene, scenes)])
    rows = [row for row in result["rows"] if row["pair"] == pair and row["study"] == "best"]
    for name in dict.fromkeys(map(_name, rows)):
        cells = {
            (row["prompts"], row["temperature"]): _cell(row) for row in rows if _name(row) == name
        }
        lines.append(_line([f"`{name}`", *(cells[scene] for scene in scenes)]))
    return "\n".join(lines) + "\n"


def _cell(row: Row) -> str:
    return f"**{row['speedup']:.2f}** {row['RB']:.2f} ({row['gamma']})"


def _same(result: Result) -> str:
    """RB, and the speedup, of both pairs on the first scene."""
    prompts, temperature = _scenes(result)[0]
    columns = [f"{pair}: {what}" for pair in PAIRS for what in ("RB", "M", "speedup")]
    lines = _head([_scene((prompts, temperature)), *columns])
    rows = [
        row
        for row in result["rows"]
        if (row["study"], row["prompts"], row["temperature"]) == ("methods", prompts, temperature)
    ]
    for name in dict.fromkeys(map(_name, rows)):
        found = {row["pair"]: row for row in rows if _name(row) == name}
        cells = [f"{found[pair][what]:.2f}" for pair in PAIRS for what in ("RB", "M", "speedup")]
        lines.append(_line([f"`{name}`", *cells]))
    settings = result["settings"]
    note = f"gamma {settings['gamma']}, k_max {settings['k_max']}, epsilon {settings['epsilon']:g}."
    return "\n".join([*lines, "", note]) + "\n"


def _frontier(result: Result) -> str:
    """What is rolled back can be had for less, at a price: the ways that pay, and what is known."""
    prompts, temperature = _scenes(result)[0]
    lines = _head(["", "speedup", "RB", "tokens/forward", "gamma", "epsilon"])
    rows = [
        row
        for row in result["rows"]
        if (row["pair"], row["prompts"], row["temperature"]) == ("worse", prompts, temperature)
    ]
    shown = [row for row in rows if row["study"] == "best" and row["policy"] in ("sps", "pearl")]
    shown += [
        row
        for row in rows
        if row["study"] == "frontier" and row["draft_stage"] == "serial" and not row["hrad"]
    ]
    for row in shown:
        numbers = [f"{row[key]:.2f}" for key in ("speedup", "RB", "tokens_per_round")]
        epsilon = "" if row["study"] == "best" else f"{row['epsilon']:g}"
        lines.append(_line([f"`{_name(row)}`", *numbers, f"{row['gamma']}", epsilon]))
    return "\n".join(lines) + "\n"


def _sweep(result: Result, study: str) -> str:
    """Speedup and RB over one setting, both pairs, on the first scene."""
    prompts, temperature = _scenes(result)[0]
    rows = [
        row
        for row in result["rows"]
        if (row["study"], row["prompts"], row["temperature"]) == (study, prompts, temperature)
    ]
    values = sorted({row[study] for row in rows})
    lines = _head([f"speedup, RB by {study}", *(f"{value:g}" for value in values)])
    for pair in PAIRS:
        for name in dict.fromkeys(_name(row) for row in rows):
            found = {row[study]: row for row in rows if row["pair"] == pair and _name(row) == name}
            cells = [f"{found[val]['speedup']:.2f} {found[val]['RB']:.2f}" for val in values]
            lines.append(_line([f"{pair} `{name}`", *cells]))
    return "\n".join(lines) + "\n"


def _layers(result: Result) -> str:
    """Held-out accuracy beside its references, and the speedup, by K."""
    references = ("H-RAD", "commonest class", "confidence, best accuracy")
    layers = [row for row in result["rows"] if row["study"] == "layers"]
    thresholds = sorted({row["epsilon"] for row in layers})
    speed = [f"speedup at epsilon {value:g}" for value in thresholds]
    lines = _head(["pair, K", *references, *speed])
    for row in result["hrad"]:
        cells = [f"{row['held_out'][name]['accuracy']:.3f}" for name in references]
        for value in thresholds:
            speeds = [
                each["speedup"]
                for each in layers
                if (each["pair"], each["layers"]) == (row["pair"], row["layers"])
                and each["epsilon"] == value
            ]
            cells.append(f"{statistics.mean(speeds):.3f}")
        lines.append(_line([f"{row['pair']}, {row['layers']}", *cells]))
    return "\n".join([*lines, "", "Speedups are means over all kinds of prompt."]) + "\n"


def _measured(result: Result) -> str:
    """Median and quartiles over prompts of the speed over ``ar``."""
    found = {(_place(row), row["method"]): row["speedups"] for row in result["measured"]}
    places = list(dict.fromkeys(place for place, _ in found))
    lines = _head(["x `ar`", *(f"{pair}, {_scene(scene)}" for pair, *scene in places)])
    for name in dict.fromkeys(method for _, method in found):
        cells = []
        for place in places:
            median, low, high = spread(found[place, name])
            cells.append(f"{median:.2f} ({low:.2f} - {high:.2f})")
        lines.append(_line([f"`{name}`", *cells]))
    return "\n".join(lines) + "\n"


def _place(row: Row) -> tuple[str, str, float]:
    return row["pair"], row["prompts"], row["temperature"]


def _name(row: Row) -> str:
    stage = f" {row['draft_stage']}" if row["policy"] in ("specbranch", "fanout") else ""
    return row["policy"] + stage + (" + H-RAD" if row["hrad"] else "")


def _scene(scene: Sequence[Any]) -> str:
    prompts, temperature = scene
    name = {"humaneval": "HumanEval", "bench/prose.txt": "prose"}.get(prompts, prompts)
    return f"{name}, {'greedy' if temperature == 0 else f'T = {temperature:g}'}"


def _provenance(result: Result) -> str:
    settings = result["settings"]
    return (
        f"Replayed at c = {settings['speed_ratio']:g}, {settings['n']} prompts of each kind, "
        f"{settings['max_new_tokens']} new tokens; noise of the worse draft: "
        f"sigma {settings['sigma']:g}. "
        f"{result['date']}, commit {commit(result)}, {result['device']}: `{result['command']}`\n"
    )


def _head(cells: Iterable[str]) -> list[str]:
    cells = list(cells)
    return [_line(cells), _line(["---"] + ["---:"] * (len(cells) - 1))]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
