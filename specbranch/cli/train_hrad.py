"""``specbranch train-hrad``: train the H-RAD predictor of a pair."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from specbranch.cli.generate import load_models
from specbranch.cli.options import Options, UsageError, check_output, model_names, name_flags


def train_hrad(options: Options) -> int:
    """Run the command; the return value is the exit code."""
    from specbranch.hrad.train import train_hrad

    assert options.output is not None, "the parser asks for it"
    check_output(options.output)
    target, draft, tokenizer = load_models(options)
    assert draft is not None, "the options name both models or none"
    prompts = _read(options)
    settings = replace(options.training, n=max(2, len(prompts)))
    try:
        trained = train_hrad(
            target,
            draft,
            [tokenizer.encode(text) for text in prompts],
            options.output,
            settings,
            names=model_names(options),
            work=options.work,
            threads=options.threads,
        )
    except (ValueError, TypeError) as error:
        raise UsageError(_name_flags(str(error))) from error
    sys.stdout.write(trained.text)
    return 0


def _read(options: Options) -> Sequence[str]:
    from specbranch.prompts import read_prompts

    source, training = options.prompts, options.training
    try:
        return read_prompts(source, training.n, training.seed)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise UsageError(f"--prompts: {error}") from error


def _name_flags(message: str) -> str:
    for name in ("work", "prompts"):
        if message.startswith(name):
            return f"--{message}"
    return name_flags(message)
