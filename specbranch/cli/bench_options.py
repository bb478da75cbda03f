"""What ``specbranch bench`` takes, and its checks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specbranch.cli.options import (
    DRAFT_STAGES,
    VERIFICATIONS,
    Options,
    UsageError,
    add_layer_skip,
    add_models,
    check_directories,
    check_hrad,
    check_layer_skip,
    check_prompts,
    name_flags,
)
from specbranch.comparison.methods import BASELINE, DEFAULT_METHODS, Method, plan_methods
from specbranch.sampling_params import SamplingParams, check_int

SETTINGS = ("gamma", "k_max", "epsilon", "draft_stage", "verify")
SAMPLING = ("max_new_tokens", "temperature", "seed")
COMMON = (*SETTINGS, *SAMPLING)

DESCRIPTION = """\
Compare decoding methods on one pair and one set of prompts. Methods take turns, prompt by prompt,
after a warm-up of each; one table is printed, and --out keeps every run, the table and pictures.
Exit code 1 where an output that has to equal ar's does not: greedy ones, and coupled ones at any
temperature. Without --target and --draft: the demo pair."""

EPILOG = """\
ms/token is the gap between the outputs of two rounds, shared equally by the tokens of the later
one; the first round's tokens count as the time to first token. The table says what the other
columns mean."""


@dataclass(frozen=True)
class BenchOptions:
    """What is compared and where it is written.

    ``methods``: as planned, ``ar`` among them; ``wanted``: as typed; ``argv``: the whole command
    line; ``settings``: of all methods that they concern.
    """

    methods: list[Method]
    wanted: tuple[str, ...]
    argv: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    n: int = 10
    repeat: int = 1
    out: Path | None = None

    @property
    def adds_baseline(self) -> bool:
        """Whether ``ar`` was not asked for."""
        return all(name.partition(":")[0] != BASELINE for name in self.wanted)


def bench_options(args: dict[str, Any], argv: Sequence[str]) -> Options:
    """Check what was parsed; raises UsageError with a message that names the flag."""
    own = {name: args.pop(name) for name in ("n", "repeat", "out")}
    wanted = tuple(args.pop("policies"))
    given = {name: value for name in COMMON if (value := args.pop(name)) is not None}
    settings = {name: given[name] for name in SETTINGS if name in given}
    sampling = {name: given[name] for name in SAMPLING if name in given}
    try:
        for name in ("n", "repeat"):
            check_int(f"--{name}", own[name], 1)
        if args["threads"] is not None:
            check_int("--threads", args["threads"], 1)
        methods = _plan(wanted, settings, args["hrad"] is not None)
        bench = BenchOptions(methods, wanted, tuple(argv), settings, **own)
        options = Options(**args, sampling=SamplingParams(**sampling), bench=bench)
    except (ValueError, TypeError) as error:
        raise UsageError(name_flags(str(error))) from error
    _check_together(options, methods)
    return options


def _plan(wanted: tuple[str, ...], settings: dict[str, Any], hrad: bool) -> list[Method]:
    try:
        return plan_methods(wanted, settings, hrad=hrad)
    except (ValueError, TypeError) as error:
        named = name_flags(str(error))
        if named != str(error):  # a setting of all
            raise UsageError(named) from error
        raise UsageError(f"--policies: {error}") from error


def _check_together(options: Options, methods: list[Method]) -> None:
    """Flags that exclude or need each other, and what must be there."""
    if options.draft is not None and options.target is None:
        raise UsageError("--draft was given without --target; it needs the model it drafts for")
    needy = [method.name for method in methods if method.needs_draft]
    check_layer_skip(options)
    has_draft = options.draft is not None or options.layer_skip is not None
    if options.target is not None and not has_draft and needy:
        raise UsageError(
            f"--policies {' '.join(needy)}: a draft model is needed; give --draft DIR, "
            "--layer-skip N, or only policies that need none (ar lookahead ngram)"
        )
    for name in ("draft_device", "draft_weights", "layer_skip"):
        if getattr(options, name) is not None and not needy:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} was given, and none of --policies has a draft")
    check_directories(options)
    check_hrad(options)
    check_prompts(options)
    out = options.bench.out if options.bench is not None else None
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out was {str(out)!r}; it must be a directory, or a new one's name")


def add_bench(commands: Any) -> argparse.ArgumentParser:
    """The command's parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="compare decoding methods on a pair and prompts",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    add_layer_skip(add_models(parser))
    _add_methods(parser)
    _add_requests(parser)
    return parser


def _add_methods(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("methods").add_argument
    add(
        "--policies",
        nargs="+",
        default=DEFAULT_METHODS,
        metavar="POLICY",
        help="each may have settings of its own, as in specbranch:gamma=4,draft_stage=serial; ar "
        f"is always run; default: {' '.join(DEFAULT_METHODS)}",
    )
    add("--gamma", type=int, metavar="N", help="draft length of all that have none of their own")
    add("--k-max", type=int, metavar="N", help="likewise: most branches")
    add("--epsilon", type=float, metavar="X", help="likewise: confidence that cuts a draft")
    add("--draft-stage", choices=DRAFT_STAGES, help="likewise: what follows a rejection")
    add("--verify", choices=VERIFICATIONS, help="likewise: how drafted tokens are judged")
    add("--hrad", metavar="FILE", help="adds specbranch+hrad: what train-hrad wrote, or demo")


def _add_requests(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("requests").add_argument
    add(
        "--prompts",
        default="stdlib",
        metavar="FILE",
        help="one a line, .jsonl, humaneval or stdlib (default)",
    )
    add("--n", type=int, default=10, metavar="N", help="most prompts, default 10")
    add("--max-new-tokens", type=int, metavar="N", help="default 128")
    add("--temperature", type=float, metavar="X", help="default 0, greedy")
    add("--seed", type=int, metavar="N", help="of the first prompt, counting up; default 0")
    add("--repeat", type=int, default=1, metavar="N", help="runs of each on each prompt, default 1")
    add("--threads", type=int, metavar="N", help="CPU cores for every method, default all")
    add("--out", type=Path, metavar="DIR", help="write bench.json, .csv, .md and pictures there")
