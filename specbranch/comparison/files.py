"""Results as files: ``bench.json`` (all of it), ``bench.csv``, ``bench.md`` and pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .methods import Method
from .plots import can_draw, draw_all
from .result import Comparison
from .table import as_markdown


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write all that can be written into ``folder``; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    json_file, csv_file, markdown = (folder / f"bench.{kind}" for kind in ("json", "csv", "md"))
    json_file.write_text(as_json(comparison), encoding="utf-8")
    with csv_file.open("w", encoding="utf-8", newline="") as file:
        found = list(csv_rows(comparison))
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    pictures = draw_all(comparison, folder) if can_draw() else []
    shown = "".join(f"\n![{path.stem}]({path.name})\n" for path in pictures)
    markdown.write_text(as_markdown(comparison) + shown, encoding="utf-8")
    return [json_file, csv_file, markdown, *pictures]


def as_json(comparison: Comparison) -> str:
    """One run a line, so that the file can be read and compared by line."""
    found = comparison.to_dict()
    runs = found.pop("runs")
    head = json.dumps(found, indent=1).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(run)}" for run in runs)
    return f'{head},\n "runs": [\n{lines}\n ]\n}}\n'


def csv_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """One for each method and prompt, over its repeats: settings, figures, speedup."""
    settings = sorted({key for method in comparison.methods for key in method.settings})
    for method in comparison.methods:
        speedups = comparison.speedups(method)
        for prompt, num_tokens in enumerate(comparison.prompt_tokens):
            yield {
                "method": method.name,
                "policy": method.policy,
                "prompt": prompt,
                "prompt_tokens": num_tokens,
                "speedup": round(speedups[prompt], 4),
                **{key: _rounded(val) for key, val in _figures(comparison, method, prompt)},
                **{key: method.settings.get(key) for key in settings},
                "hrad": method.hrad,
            }


def _figures(comparison: Comparison, method: Method, prompt: int) -> list[tuple[str, Any]]:
    return list(asdict(comparison.metrics(method, prompt)).items())


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
