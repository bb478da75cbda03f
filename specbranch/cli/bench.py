"""``specbranch bench``: decoding methods side by side."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbranch.cli.generate import load_models, load_predictor
from specbranch.cli.options import (
    TRAINED_ON,
    Options,
    UsageError,
    check_folder,
    model_names,
    name_flags,
)

if TYPE_CHECKING:
    from specbranch.comparison import Comparison
    from specbranch.models import CausalLM
    from specbranch.tokenizer import Tokenizer

EXIT_DIFFERS = 1
NO_PICTURES = (
    "bench: no pictures will be drawn, because matplotlib is not installed "
    "(pip install 'specbranch[bench]')"
)


def bench(options: Options) -> int:
    """Run the command; the return value is the exit code."""
    from specbranch.comparison.plots import can_draw

    asked = options.bench
    assert asked is not None, "the parser has filled it in"
    if asked.adds_baseline:
        _log("bench: ar was added to --policies, as the baseline")
    if asked.out is not None and not can_draw():
        _log(NO_PICTURES)
    prompts = _read_prompts(options, asked.n)
    if asked.out is not None:
        check_folder("--out", asked.out, asked.out)
    target, draft, tokenizer = load_models(options)
    found = _compare(options, target, draft, tokenizer, prompts)
    found.about |= _about(options, asked.argv)
    for model, name in zip(found.about["models"].values(), model_names(options), strict=False):
        model["name"] = name
    written = [] if asked.out is None else found.write(asked.out)  # before a pipe may break
    sys.stdout.write(found.table())
    for path in written:
        _log(f"bench: wrote {path}")
    for difference in found.wrong:
        _log(f"bench: {difference}")
    return EXIT_DIFFERS if found.wrong else 0


def _compare(
    options: Options,
    target: CausalLM,
    draft: CausalLM | None,
    tokenizer: Tokenizer,
    prompts: list[str],
) -> Comparison:
    from specbranch.comparison import compare
    from specbranch.progress import Progress

    asked = options.bench
    assert asked is not None, "the parser has filled it in"
    predictor = None if options.hrad is None else load_predictor(options.hrad, target)
    try:
        total = len(asked.methods) * len(prompts) * asked.repeat
        with Progress("bench", total) as bar:
            return compare(
                target,
                draft,
                prompts,
                asked.wanted,
                options.sampling,
                settings=asked.settings,
                tokenizer=tokenizer,
                predictor=predictor,
                threads=options.threads,
                repeat=asked.repeat,
                step=bar.step,
            )
    except (ValueError, TypeError) as error:
        raise UsageError(name_flags(str(error))) from error


def _read_prompts(options: Options, num_prompts: int) -> list[str]:
    from specbranch.prompts import read_prompts

    try:
        return read_prompts(options.prompts, num_prompts, options.sampling.seed)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise UsageError(f"--prompts: {error}") from error


def _about(options: Options, argv: Sequence[str]) -> dict[str, Any]:
    """The command and the prompts, without the folders of whoever ran it."""
    given = [Path(part).name if Path(part).is_absolute() else part for part in argv]
    notes = []
    if options.target is None and options.prompts == "stdlib":
        notes.append(TRAINED_ON)
    return {
        "command": shlex.join(["specbranch", *given]),
        "prompts": Path(options.prompts).name,
        "notes": notes,
    }


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
