"""The two lanes of each method that drafts, over some rounds: overlap and bubbles to look at."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..timeline import DRAFT, TARGET, Round, Span
from .methods import Method
from .result import Comparison
from .runs import Run

NUM_ROUNDS = 7
FIRST = 2  # rounds before it fill the pipeline
LANES = {TARGET: 1, DRAFT: 0}  # where each lies
HEIGHT = 0.72
NARROW = 0.036  # of the picture's width: labels of such rounds would touch
COLOURS = {
    (TARGET, "prefill"): "#9aa5b1",
    (TARGET, "forward"): "#2f5d8c",
    (TARGET, "verify"): "#7fb2e5",
    (DRAFT, "prefill"): "#c9c2b8",
    (DRAFT, "read"): "#b9770e",
    (DRAFT, "chain"): "#f0b429",
    (DRAFT, "branches"): "#57a773",
}


@dataclass(frozen=True)
class Window:
    """Consecutive rounds of a run; seconds count from the first one's start."""

    method: Method
    spans: list[Span]
    rounds: list[Round]
    starts: list[float]
    seconds: float

    @property
    def num_tokens(self) -> int:
        """Tokens that they committed."""
        return sum(outcome.num_committed for outcome in self.rounds)


def timeline_figure(comparison: Comparison) -> Any:
    """Two lanes of each method that has a draft; None where the lanes were not watched."""
    windows = [
        window
        for method in comparison.methods
        if method.needs_draft and (window := _window_of(comparison, method)) is not None
    ]
    return _draw(windows) if windows else None


def _window_of(comparison: Comparison, method: Method) -> Window | None:
    runs = [run for run in comparison.runs_of(method, 0) if run.spans]
    return window(method, runs[0]) if runs else None


def window(method: Method, run: Run, count: int = NUM_ROUNDS) -> Window | None:
    """The ``count`` rounds that took the median time of all such stretches; None: no rounds.

    A request that is too short for that gives what it has.
    """
    num_rounds = min(len(run.rounds), max((span.round for span in run.spans), default=-1) + 1)
    if not num_rounds:
        return None
    ends = [max(span.end for span in run.spans if span.round == idx) for idx in range(num_rounds)]
    starts = [_start(run.spans, idx) for idx in range(num_rounds)]
    borders = [*starts, ends[-1]]
    count = min(count, num_rounds)
    first_of_all = min(FIRST, num_rounds - count)
    lengths = {
        first: borders[first + count] - borders[first]
        for first in range(first_of_all, num_rounds - count + 1)
    }
    middle = statistics.median_low(lengths.values())
    first = next(idx for idx, length in lengths.items() if length == middle)
    return Window(
        method=method,
        spans=_moved(run.spans, range(first, first + count), starts[first]),
        rounds=run.rounds[first : first + count],
        starts=[start - starts[first] for start in starts[first : first + count]],
        seconds=middle,
    )


def _start(spans: Sequence[Span], idx: int) -> float:
    return min(span.start for span in spans if span.round == idx)


def _moved(spans: Sequence[Span], rounds: range, origin: float) -> list[Span]:
    return [
        span._replace(start=span.start - origin, end=span.end - origin)
        for span in spans
        if span.round in rounds
    ]


def _draw(windows: Sequence[Window]) -> Any:
    from .plots import colours, new_figure

    figure = new_figure(11, 1.2 + 1.15 * len(windows))
    grid = figure.subplots(len(windows), 1, sharex=True, squeeze=False)[:, 0]
    longest = 1e3 * max(each.seconds for each in windows)
    colour = colours([each.method for each in windows])
    for axes, each in zip(grid, windows, strict=True):
        _draw_window(axes, each)
        _label_rounds(axes, each, NARROW * longest)
        rate = f"{each.num_tokens} tokens in {1e3 * each.seconds:.1f} ms"
        style = {"fontsize": "small", "fontweight": "bold", "color": colour[each.method.name]}
        axes.set_title(f"{each.method.name}: {rate}", loc="left", pad=2, **style)
        axes.set_xlim(0, 1.01 * longest)
    grid[-1].set_xlabel("ms, the same scale for all")
    figure.suptitle(
        f"{max(len(each.rounds) for each in windows)} rounds of the first prompt, the stretch of "
        "median length. Grey: the lane is idle.\n"
        "Above: accepted / length of the chain, and +b where a branch survived",
        fontsize="medium",
    )
    _legend(figure, windows)
    return figure


def _draw_window(axes: Any, each: Window) -> None:
    """Grey lanes, a bar for each span, a line between rounds."""
    total = 1e3 * each.seconds
    for lane, row in LANES.items():
        axes.barh(row, total, height=HEIGHT, color="#ececec", label=f"{lane} idle")
        bars = [span for span in each.spans if span.lane == lane]
        for span in bars:
            axes.barh(
                row, 1e3 * span.seconds, left=1e3 * span.start, height=HEIGHT,
                color=COLOURS[span.lane, span.work], label=f"{lane} {span.work}",
            )  # fmt: skip
    for start in each.starts[1:]:
        axes.axvline(1e3 * start, ymax=0.685, color="#222222", linewidth=0.7, linestyle=":")
    axes.set_yticks(list(LANES.values()), list(LANES))
    axes.set_ylim(-0.5, 2.3)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _label_rounds(axes: Any, each: Window, narrow: float) -> None:
    """What came of each round, above it; of rounds below ``narrow`` ms every other one higher."""
    ends, is_high = [*each.starts[1:], each.seconds], False
    for start, end, outcome in zip(each.starts, ends, each.rounds, strict=True):
        is_high = 1e3 * (end - start) < narrow and not is_high
        branch = " +b" if outcome.last == "branch" else ""
        label = f"{outcome.num_accepted}/{outcome.num_drafted}{branch}"
        place = 500 * (start + end), 1.83 if is_high else 1.42
        axes.text(*place, label, ha="center", va="bottom", fontsize="x-small")


def _legend(figure: Any, windows: Sequence[Window]) -> None:
    from matplotlib.patches import Patch

    seen = {(span.lane, span.work) for each in windows for span in each.spans}
    handles = [
        Patch(color=colour, label=f"{lane}: {work}")
        for (lane, work), colour in COLOURS.items()
        if (lane, work) in seen
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
