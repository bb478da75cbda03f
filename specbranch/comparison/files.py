"""Results as files: ``bench.json`` (all of it), ``bench.csv``, ``bench.md`` and pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import write_text_safely
from .methods import Method
from .plots import PICTURES, can_draw, draw_all
from .result import Comparison
from .table import as_markdown


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write all that can be written into ``folder``; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    json_file, csv_file, markdown = (folder / f"bench.{kind}" for kind in ("json", "csv", "md"))
    write_text_safely(json_file, as_json(comparison))
    write_text_safely(csv_file, _as_csv(list(csv_rows(comparison))))
    for name in PICTURES:  # an earlier run's would pass for this one's
        (folder / f"{name}.png").unlink(missing_ok=True)
    pictures = draw_all(comparison, folder) if can_draw() else []
    shown = "".join(f"\n![{path.stem}]({path.name})\n" for path in pictures)
    write_text_safely(markdown, as_markdown(comparison) + shown)
    return [json_file, csv_file, markdown, *pictures]


def _as_csv(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


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
