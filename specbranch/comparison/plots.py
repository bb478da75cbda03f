"""Pictures of a comparison: speedup, rollback, acceptance by position, accepted length.

Every function gives a matplotlib ``Figure``, made without ``pyplot`` and its global state. A method
has the same colour in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .methods import Method
from .metrics import acceptance_by_position, accepted_lengths, spread, total_counters
from .result import Comparison
from .timeline_plot import timeline_figure

COLOURS = {
    "ar": "#7f7f7f",
    "sps": "#3b6fb6",
    "specbranch": "#c8323c",
    "pearl": "#e8912d",
    "adaedl": "#7b5fb0",
    "fanout": "#3a9a5b",
    "lookahead": "#8a6a52",
    "ngram": "#d66fb0",
    "auto": "#1795a6",
}
HRAD_COLOUR = "#7a0f1c"
MARKERS = "osD^vP*X<>"
FEW = 20  # judged tokens below which a share is only a hint
DPI = 150
LONG_NAME = 18  # characters


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def draw_all(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw every picture that there is something to draw of; the files written."""
    written = []
    for name, make in PICTURES.items():
        figure = make(comparison)
        if figure is not None:
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=DPI)
    return written


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def colours(methods: Sequence[Method]) -> dict[str, str]:
    """A colour for each method by its policy; further methods of a policy have paler ones."""
    from matplotlib.colors import to_hex, to_rgb

    found: dict[str, str] = {}
    seen: dict[str, int] = {}
    for method in methods:
        base = HRAD_COLOUR if method.hrad else COLOURS[method.policy]
        paler = 1.0 - 0.62 ** seen.get(base, 0)
        seen[base] = seen.get(base, 0) + 1
        red, green, blue = (part + (1.0 - part) * paler for part in to_rgb(base))
        found[method.name] = to_hex((red, green, blue))
    return found


def label_of(method: Method) -> str:
    """Its name, the settings of a long one on a line of their own."""
    head, colon, rest = method.name.partition(":")
    return f"{head}:\n{rest}" if colon and len(method.name) > LONG_NAME else method.name


def _tidy(axes: Any, grid: str = "x") -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=grid, alpha=0.3)
    axes.set_axisbelow(True)


def _what(comparison: Comparison) -> str:
    params, count = comparison.params, len(comparison.prompt_tokens)
    kind = "greedy" if params.temperature == 0 else f"temperature {params.temperature:g}"
    return f"{kind}, {count} prompt{'s' * (count > 1)}, at most {params.max_new_tokens} new tokens"


# ---------------------------------------------------------------------------------------- speedup
def speedup_figure(comparison: Comparison) -> Any:
    """Bars of the medians, whiskers to the quartiles, a dot for each prompt."""
    methods = comparison.methods[::-1]
    colour = colours(comparison.methods)
    figure = new_figure(8, 1.4 + 0.42 * len(methods))
    axes = figure.subplots()
    largest = 0.0
    for row, method in enumerate(methods):
        ratios = list(comparison.speedups(method).values())
        median, low, high = spread(ratios)
        axes.barh(row, median, height=0.62, color=colour[method.name], alpha=0.85)
        if method != comparison.baseline:
            axes.errorbar(
                median, row, xerr=[[median - low], [high - median]], color="#222222", capsize=4
            )
            offsets = [0.22 * (idx % 5 - 2) / 2 for idx in range(len(ratios))]
            dots = [row + offset for offset in offsets]
            axes.plot(ratios, dots, ".", color="#222222", alpha=0.35, markersize=4)
        largest = max(largest, *ratios)
        axes.text(1.01, row, f"{median:.2f}", transform=axes.get_yaxis_transform(), va="center")
    axes.axvline(1.0, color="#222222", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(methods)), [label_of(method) for method in methods])
    axes.set_xlim(0, 1.05 * largest)
    axes.set_xlabel("speedup over ar: median, quartiles, and every prompt (dots)")
    figure.suptitle(f"Tokens per second over ar: {_what(comparison)}", fontsize="medium")
    _tidy(axes)
    return figure


# --------------------------------------------------------------------------------------- rollback
PARTS = ("accepted", "rolled_back", "pruned")


def rollback_figure(comparison: Comparison) -> Any:
    """What became of the main line's drafted tokens; None where nothing was drafted."""
    shares = [
        (method, found)
        for method in comparison.methods[::-1]
        if (found := _shares(comparison, method)) is not None
    ]
    if not shares:
        return None
    colour = colours(comparison.methods)
    figure = new_figure(8, 1.7 + 0.42 * len(shares))
    axes = figure.subplots()
    styles = {"accepted": 0.3, "rolled_back": 1.0, "pruned": 0.12, "left": 0.0}
    for row, (method, found) in enumerate(shares):
        shade = colour[method.name]
        start = 0.0
        for part, alpha in styles.items():
            rgba = (shade, alpha)
            axes.barh(
                row, found[part], left=start, height=0.62, facecolor=rgba, edgecolor=shade,
                hatch="////" if part == "pruned" else None, linewidth=0.8,
            )  # fmt: skip
            start += found[part]
        label = f"RB {found['rolled_back']:.2f}"
        axes.text(1.01, row, label, transform=axes.get_yaxis_transform(), va="center")
    axes.set_yticks(range(len(shares)), [label_of(method) for method, _ in shares])
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the main line's drafted tokens")
    figure.suptitle(f"What became of drafted tokens: {_what(comparison)}", fontsize="medium")
    _part_legend(figure)
    _tidy(axes)
    return figure


def _shares(comparison: Comparison, method: Method) -> dict[str, float] | None:
    total = total_counters(run.counters for run in comparison.runs_of(method))
    if not total["drafted"]:
        return None
    found = {part: total[part] / total["drafted"] for part in PARTS}
    return found | {"left": max(0.0, 1.0 - sum(found.values()))}


def _part_legend(figure: Any) -> None:
    from matplotlib.patches import Patch

    grey = "#444444"
    handles = [
        Patch(facecolor=(grey, 0.3), edgecolor=grey, label="accepted"),
        Patch(facecolor=grey, edgecolor=grey, label="rolled back (RB)"),
        Patch(facecolor=(grey, 0.12), edgecolor=grey, hatch="////", label="pruned unread"),
        Patch(facecolor="none", edgecolor=grey, label="not judged when the request ended"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)


# -------------------------------------------------------------------------------------- positions
def acceptance_figure(comparison: Comparison) -> Any:
    """Share of judged chain tokens that were accepted, by position; None: no chains."""
    colour = colours(comparison.methods)
    figure = new_figure(8, 4.6)
    axes = figure.subplots()
    longest, lowest = 0, 1.0
    for idx, method in enumerate(comparison.methods):
        counts = acceptance_by_position(comparison.runs_of(method))
        points = [(at, num, hits) for at, (num, hits) in enumerate(counts, 1) if num]
        if not points:
            continue
        longest = max(longest, points[-1][0])
        places, shares = [at for at, _, _ in points], [hits / num for _, num, hits in points]
        lowest = min(lowest, *shares)
        style = {"color": colour[method.name], "marker": MARKERS[idx % len(MARKERS)]}
        (line,) = axes.plot(places, shares, label=label_of(method), linewidth=1.6, **style)
        line.set_markevery([row for row, (_, num, _) in enumerate(points) if num >= FEW])
        few = [row for row, (_, num, _) in enumerate(points) if num < FEW]
        hollow = {"linestyle": "none", "markerfacecolor": "white"}
        axes.plot([places[row] for row in few], [shares[row] for row in few], **style, **hollow)
    if not longest:
        return None
    axes.set_ylim(max(0.0, math.floor(10 * lowest - 0.5) / 10), 1.02)
    axes.set_xticks(_ticks(longest))
    axes.set_xlabel("position in the chain")
    axes.set_ylabel("accepted, of those judged")
    figure.suptitle(
        f"Acceptance by position: {_what(comparison)}\n"
        f"hollow: fewer than {FEW} tokens judged there",
        fontsize="medium",
    )
    figure.legend(loc="outside right center", frameon=False)
    _tidy(axes, "y")
    return figure


def _ticks(longest: int) -> list[int]:
    step = max(1, math.ceil(longest / 16))
    return list(range(1, longest + 1, step))


# ---------------------------------------------------------------------------------------- lengths
def length_figure(comparison: Comparison) -> Any:
    """A histogram of accepted drafted tokens per round for each method that drafts; None: none."""
    found = [
        (method, accepted_lengths(comparison.runs_of(method))) for method in comparison.methods
    ]
    found = [(method, counts) for method, counts in found if len(counts) > 1]
    if not found:
        return None
    colour = colours(comparison.methods)
    columns = min(4, len(found))
    num_rows = math.ceil(len(found) / columns)
    figure = new_figure(2.5 * columns + 0.5, 2.1 * num_rows + 0.7)
    grid = figure.subplots(num_rows, columns, sharex=True, sharey=True, squeeze=False)
    longest = max(len(counts) for _, counts in found)
    for axes, (method, counts) in zip(grid.flat, found, strict=False):
        _histogram(axes, method, counts, colour[method.name])
        axes.set_xticks([0, *(at for at in _ticks(longest) if at < longest)])
    for axes in grid.flat[len(found) :]:
        axes.set_visible(False)
    for axes in grid.flat[len(found) - columns : len(found)]:  # nothing is below these
        axes.tick_params(labelbottom=True)
    figure.supxlabel("drafted tokens accepted in a round", fontsize="medium")
    figure.supylabel("share of rounds", fontsize="medium")
    figure.suptitle(f"Accepted length (line: mean, M): {_what(comparison)}", fontsize="medium")
    return figure


def _histogram(axes: Any, method: Method, counts: Sequence[int], colour: str) -> None:
    total = sum(counts)
    mean = sum(length * count for length, count in enumerate(counts)) / total
    axes.bar(range(len(counts)), [count / total for count in counts], color=colour, width=0.8)
    axes.axvline(mean, color="#222222", linestyle="--", linewidth=1)
    axes.set_title(f"{label_of(method)}: {mean:.2f}", fontsize="small", color=colour)
    _tidy(axes, "y")


# ------------------------------------------------------------------------------------------ files
# By the name of its file; a figure is None where there is nothing to draw.
PICTURES: dict[str, Callable[[Comparison], Any]] = {
    "speedup": speedup_figure,
    "rollback": rollback_figure,
    "acceptance_by_position": acceptance_figure,
    "accepted_length": length_figure,
    "timeline": timeline_figure,
}
