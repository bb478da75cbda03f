"""Decoding methods side by side on one pair and its prompts: what ``specbranch bench`` runs.

    from specbranch import demo_pair
    from specbranch.comparison import compare

    target, draft, tokenizer = demo_pair()
    found = compare(target, draft, ["def add(a, b):"], ["ar", "sps:gamma=5"], tokenizer=tokenizer)
    found.write("results")  # bench.json, .csv, .md and pictures

``methods.py`` says what is compared, ``measure.py`` times one request, ``run.py`` interleaves
them, ``metrics.py`` makes figures of it, ``equality.py`` holds outputs against ``ar``'s, and
``table.py``, ``files.py``, ``plots.py`` and ``timeline_plot.py`` show it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .methods import DEFAULT_METHODS, Method, parse_method, plan_methods

if TYPE_CHECKING:
    from .equality import Difference
    from .metrics import Metrics
    from .result import Comparison
    from .run import compare
    from .runs import Run

_HOMES = {
    "Comparison": "result",
    "Difference": "equality",
    "Metrics": "metrics",
    "Run": "runs",
    "compare": "run",
}

__all__ = [
    "DEFAULT_METHODS",
    "Comparison",
    "Difference",
    "Method",
    "Metrics",
    "Run",
    "compare",
    "parse_method",
    "plan_methods",
]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: the command line's checks must not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'specbranch.comparison' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
