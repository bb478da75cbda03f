"""The one table of a comparison, what its columns mean, and what was run: text or Markdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .metrics import Metrics, Spread, spread
from .provenance import provenance
from .result import Comparison

NOTES = (
    "tokens/s: new tokens over wall time, prompt included; none behind an end-of-sequence token or "
    "past the limit is counted.",
    "x ar: that over ar's on the same prompt; median over prompts (quartiles).",
    "first: time to the first token, prompt ms: of it until the prompt was processed; medians.",
    "ms/token: the gap between the outputs of two rounds, shared equally by the tokens of the "
    "later one; every token but the first round's is counted.",
    "M: accepted drafted tokens a target forward. tokens/forward: all tokens a target forward; no "
    "bonus: without those that the target added after a chain of which nothing was rejected.",
    "RB: drafted tokens of the main line (chain, likeliest branch) thrown away by a rejection or a "
    "miss, of all of them. hits: branch points whose token was a candidate.",
    "bubble: share of the time after the prompt in which the target's lane sat idle.",
    "forwards: of one run over all prompts.",
)


class Row(NamedTuple):
    """What the cells of a method are made of."""

    name: str
    found: Metrics
    speedup: Spread
    is_baseline: bool
    repeat: int


class Column(NamedTuple):
    """A title in two lines, and a cell."""

    above: str
    title: str
    cell: Callable[[Row], str]


def _number(digits: int, value: float | None, scale: float = 1.0) -> str:
    return "" if value is None else f"{scale * value:.{digits}f}"


def _speedup(row: Row) -> str:
    if row.is_baseline:
        return "1"
    median, low, high = row.speedup
    return f"{median:.2f} ({low:.2f} - {high:.2f})"


COLUMNS = (
    Column("", "method", lambda row: row.name),
    Column("", "tokens/s", lambda row: _number(0, row.found.tokens_per_second)),
    Column("", "x ar (quartiles)", _speedup),
    Column("first", "ms", lambda row: _number(1, row.found.time_to_first_token, 1e3)),
    Column("prompt", "ms", lambda row: _number(1, row.found.prefill_seconds, 1e3)),
    Column("ms/token", "p50", lambda row: _number(2, row.found.token_p50, 1e3)),
    Column("ms/token", "p99", lambda row: _number(2, row.found.token_p99, 1e3)),
    Column("", "M", lambda row: _number(2, row.found.M)),
    Column("tokens", "/forward", lambda row: _number(2, row.found.tokens_per_round)),
    Column("no", "bonus", lambda row: _number(2, row.found.tokens_without_bonus)),
    Column("", "RB", lambda row: _number(2, row.found.RB)),
    Column("", "hits", lambda row: _number(2, row.found.branch_hit_rate)),
    Column("", "bubble", lambda row: _number(2, row.found.bubble)),
    Column("forwards", "target", lambda row: _number(0, row.found.target_forwards / row.repeat)),
    Column("forwards", "draft", lambda row: _number(0, row.found.draft_forwards / row.repeat)),
)


def rows(comparison: Comparison) -> list[Row]:
    """One for each method, in the order in which they were given."""
    return [
        Row(
            method.name,
            comparison.metrics(method),
            spread(list(comparison.speedups(method).values())),
            method == comparison.baseline,
            comparison.repeat,
        )
        for method in comparison.methods
    ]


def as_text(comparison: Comparison) -> str:
    """For a terminal."""
    heads = [[column.above for column in COLUMNS], [column.title for column in COLUMNS]]
    cells = [[column.cell(row) for column in COLUMNS] for row in rows(comparison)]
    widths = [max(map(len, column)) for column in zip(*heads, *cells, strict=True)]
    lines = [_aligned(line, widths) for line in heads + cells]
    below = [*NOTES, "", *provenance(comparison)]
    return "\n".join([*lines, "", *below]) + "\n"


def _aligned(cells: list[str], widths: list[int]) -> str:
    """The first column to the left, numbers to the right."""
    first, *rest = (
        cell.rjust(width) if idx else cell.ljust(width)
        for idx, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *rest]).rstrip()


def as_markdown(comparison: Comparison) -> str:
    """For ``bench.md``."""
    titles = [f"{column.above} {column.title}".strip() for column in COLUMNS]
    lines = [_piped(titles), _piped(["---"] + ["---:"] * (len(COLUMNS) - 1))]
    for row in rows(comparison):
        name, *cells = (column.cell(row) for column in COLUMNS)
        lines.append(_piped([f"`{name}`", *cells]))
    notes = [f"- {line}" for line in NOTES]
    below = [f"- {line}" for line in provenance(comparison)]
    return "\n".join([*lines, "", *notes, "", *below]) + "\n"


def _piped(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
