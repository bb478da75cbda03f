"""The command line: ``specbranch generate``, ``bench``, ``plan``, ``train-hrad`` and ``info``.

Nothing here imports torch before a command needs it, so ``--help`` and ``--version`` are quick.
Text goes to stdout, everything else to stderr; an error is one line and exit code 2.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from specbranch.cli.options import Options, UsageError, parse

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
LONGEST_MESSAGE = 500
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

logger = logging.getLogger("specbranch.cli")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        options = parse(argv)
    except UsageError as error:
        return _fail(str(error))
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        _replace_what_cannot_be_encoded(stream)
    try:
        return _command(options.command)(options)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (``| head``); keep the interpreter's own last flush quiet as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except (UsageError, ValueError, TypeError, OSError) as error:
        logger.debug("the command failed", exc_info=True)
        return _fail(str(error) or type(error).__name__)
    except Exception as error:  # a person at a terminal gets one line, --verbose the traceback
        logger.debug("the command failed", exc_info=True)
        return _fail(f"{type(error).__name__}: {error} (--verbose shows where)")


def _command(name: str) -> Callable[[Options], int]:
    if name == "info":
        from specbranch.cli.info import info

        return info
    if name == "train-hrad":
        from specbranch.cli.train_hrad import train_hrad

        return train_hrad
    if name == "bench":
        from specbranch.cli.bench import bench

        return bench
    if name == "plan":
        from specbranch.cli.plan import plan

        return plan
    from specbranch.cli.generate import generate

    return generate


def _fail(message: str) -> int:
    one_line = " ".join(message.split())
    if len(one_line) > LONGEST_MESSAGE:
        one_line = one_line[:LONGEST_MESSAGE] + " ..."
    sys.stderr.write(f"specbranch: error: {one_line}\n")
    return EXIT_ERROR


def _replace_what_cannot_be_encoded(stream: TextIO) -> None:
    """A terminal without Unicode shows ``?`` instead of ending the run."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
