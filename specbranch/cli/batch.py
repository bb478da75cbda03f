"""``specbranch generate --prompts FILE``: several prompts side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from specbranch.cli.options import Options, UsageError, name_flags

if TYPE_CHECKING:
    from specbranch.batching import BatchReport
    from specbranch.engine import Engine, Prompt


def read(options: Options) -> list[Prompt]:
    """The prompts of the file."""
    from specbranch.cli.generate import as_prompt
    from specbranch.prompts import read_prompts

    try:
        # With its folder: a file may be called as one of the sets of prompts is.
        texts = read_prompts(str(Path(options.prompts).absolute()), sys.maxsize)
    except (OSError, ValueError) as error:
        raise UsageError(f"--prompts {options.prompts!r} cannot be read: {error}") from error
    return [as_prompt(text, options) for text in texts]


def run(engine: Engine, prompts: list[Prompt], options: Options) -> bool:
    """Decode them and print what has come of them; False: it was interrupted."""
    is_complete = True
    size = {} if options.batch is None else {"max_batch": options.batch}
    try:
        events = engine.events_batch(prompts, options.sampling, **size)
        try:
            for _ in events:
                pass
        finally:
            events.close()
    except KeyboardInterrupt:
        is_complete = False
    except (ValueError, TypeError) as error:
        raise UsageError(name_flags(str(error))) from error
    if engine.last_batch is not None:
        _report(engine.last_batch, options)
    return is_complete


def _report(report: BatchReport, options: Options) -> None:
    """One JSON object a line, or the texts, each under a line with its number."""
    from specbranch.cli.generate import as_object

    for index, result in enumerate(report.results):
        if options.json:
            found = {"prompt": index} | as_object(result)
            sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
        else:
            text = result.text or ""
            ends = "" if text.endswith("\n") else "\n"
            sys.stdout.write(f"=== {index} ({result.finish_reason})\n{text}{ends}")
    if options.stats:
        sys.stderr.write(report.summary() + "\n")
