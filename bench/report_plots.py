"""Pictures of result files: share of copy bandwidth by op, tokens a second by method."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

Result = dict[str, Any]
Bars = dict[str, tuple[float, float, float]]  # lowest, median, highest


def draw_all(results: Path, folder: Path) -> list[Path]:
    """One picture for each result file that has one; the files written.

    Raises:
        SystemExit: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted(results.glob("*.json")):
        for name, title, unit, bars in pictures(json.loads(path.read_text(encoding="utf-8"))):
            out = folder / f"{path.stem}-{name}.svg"
            _draw(title, unit, bars, out)
            written.append(out)
    return written


def pictures(result: Result) -> list[tuple[str, str, str, Bars]]:
    """Name, title, unit and bars of each picture of a result; none for other kinds."""
    if result.get("kind") == "kernels":
        title = f"Share of copy bandwidth, all sizes: {result['device']}"
        return [("share-of-copy", title, "%", shares(result))]
    if result.get("kind") == "e2e":
        temperatures = sorted({run["temperature"] for run in result["runs"]})
        return [
            (f"t{temperature:g}", _e2e_title(result, temperature), "tokens/s", bars)
            for temperature in temperatures
            if (bars := speeds(result, temperature))
        ]
    return []


def shares(result: Result) -> Bars:
    """Per op: least, median and largest share over its sizes, in percent."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in result["rows"]:
        if "share_of_copy" in row:
            found[row["op"]].append(100 * row["share_of_copy"])
    return _spread(found)


def speeds(result: Result, temperature: float) -> Bars:
    """Per method: least, median and largest tokens a second over the prompts."""
    found: dict[str, list[float]] = defaultdict(list)
    for run in result["runs"]:
        if run["temperature"] == temperature:
            found[run["method"]].append(run["new_tokens"] / run["seconds"])
    return _spread(found)


def _spread(found: dict[str, list[float]]) -> Bars:
    return {name: (min(all_), statistics.median(all_), max(all_)) for name, all_ in found.items()}


def _e2e_title(result: Result, temperature: float) -> str:
    device = result["device"]
    where = device.get("gpu") or device.get("cpu") if isinstance(device, dict) else device
    return f"{'greedy' if temperature == 0 else f'temperature {temperature:g}'}: {where}"


def _draw(title: str, unit: str, bars: Bars, out: Path) -> None:
    """Horizontal bars of the medians, with whiskers from the least to the largest."""
    figure_class = _figure_class()
    figure = figure_class(figsize=(8, 1.2 + 0.35 * len(bars)), layout="constrained")
    axes = figure.subplots()
    names = list(bars)[::-1]
    medians = [bars[name][1] for name in names]
    whiskers = [
        [bars[name][1] - bars[name][0] for name in names],
        [bars[name][2] - bars[name][1] for name in names],
    ]
    axes.barh(names, medians, xerr=whiskers, color="#4c72b0", ecolor="#444444", capsize=2)
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(f"{unit}: median, least to largest")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(out)


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit(
            "--plots needs matplotlib, which is not installed: pip install matplotlib"
        ) from None
    return Figure
