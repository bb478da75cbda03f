"""What the command line takes: flags, their checks, and the typed result.

Checks that the library makes too use the library's own functions, so that the bounds and wording
exist once; ``name_flags`` turns the field a message names into the flag that the user typed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from specbranch.comparison.methods import WITHOUT_DRAFT
from specbranch.hrad.settings import TrainSettings
from specbranch.sampling_params import SamplingParams, check_float, check_int

if TYPE_CHECKING:
    from specbranch.cli.bench_options import BenchOptions
    from specbranch.cli.plan_options import PlanOptions

POLICIES = (
    "ar", "sps", "specbranch", "fanout", "pearl", "adaedl", "lookahead", "ngram", "auto",
)  # fmt: skip
DRAFT_STAGES = ("overlap", "serial")
VERIFICATIONS = ("rejection", "coupled")
DTYPES = ("auto", "float32", "bfloat16", "float16")
# Flags whose value goes to the Engine, if given; what is not given keeps the Engine's default.
ENGINE_FLAGS = (
    "policy", "gamma", "k_max", "epsilon", "draft_stage", "verify", "max_ngram", "window",
    "draft_sms",
)  # fmt: skip
DEVICE_FLAGS = ("device", "draft_device")
WEIGHTS_FLAGS = ("target_weights", "draft_weights")
WEIGHTS = ("exact", "int8")
SAMPLING_FLAGS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop")
TRAIN_FLAGS = ("gamma", "layers", "n", "max_new_tokens", "temperatures", "epochs", "batch", "seed")
PROMPT_SETS = ("humaneval", "stdlib")
TRAINED_ON = "stdlib prompts are text that the demo pair was trained on"
DEMO = "demo"  # --hrad demo: the predictor that was trained for the demo pair


class UsageError(Exception):
    """The command line asks for something that cannot be done; the text says what."""


@dataclass(frozen=True)
class Options:
    """One parsed and checked command line."""

    command: str
    json: bool = False
    verbose: bool = False
    prompt: str | None = None
    file: Path | None = None
    chat: bool = False
    system: str | None = None
    target: Path | None = None
    draft: Path | None = None
    layer_skip: int | None = None
    device: str = "cpu"
    draft_device: str | None = None
    dtype: str = "auto"
    target_weights: str = "exact"
    draft_weights: str | None = None
    stats: bool = False
    show: bool = False
    sampling: SamplingParams = field(default_factory=SamplingParams)
    engine: dict[str, Any] = field(default_factory=dict)
    hrad: str | None = None
    prompts: str = ""
    batch: int | None = None
    output: Path | None = None
    work: Path | None = None
    threads: int | None = None
    training: TrainSettings = field(default_factory=TrainSettings)
    bench: BenchOptions | None = None
    plan: PlanOptions | None = None

    @property
    def weights_of_draft(self) -> str:
        """``draft_weights``, or what they are where the flag was not given."""
        return self.draft_weights or "exact"


class _Parser(argparse.ArgumentParser):
    """argparse without the usage block before an error and without abbreviated flags."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see '{self.prog} --help')")


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: Any) -> NoReturn:
        from specbranch import __version__

        sys.stdout.write(f"specbranch {__version__}\n")
        parser.exit()


def parse(argv: Sequence[str] | None = None) -> Options:
    """Parse and check ``argv``; raises UsageError with a message that names the flag."""
    from specbranch.cli.bench_options import bench_options

    args = vars(_parser().parse_args(argv))
    if args["command"] == "bench":
        return bench_options(args, sys.argv[1:] if argv is None else argv)
    if args["command"] == "info":
        options = Options(**args)
        check_directories(options)
        return options
    if args["command"] == "train-hrad":
        return _train_options(args)
    if args["command"] == "plan":
        from specbranch.cli.plan_options import plan_options

        return plan_options(args)
    engine = {name: value for name in ENGINE_FLAGS if (value := args.pop(name)) is not None}
    sampling = {name: value for name in SAMPLING_FLAGS if (value := args.pop(name)) is not None}
    try:
        _check_engine(engine)
        options = Options(**args, engine=engine, sampling=SamplingParams(**sampling))
    except (ValueError, TypeError) as error:
        raise UsageError(name_flags(str(error))) from error
    _check_together(options)
    return options


def _train_options(args: dict[str, Any]) -> Options:
    training = {name: value for name in TRAIN_FLAGS if (value := args.pop(name)) is not None}
    training["balanced"] = not args.pop("unbalanced")
    try:
        if "temperatures" in training:
            training["temperatures"] = tuple(training["temperatures"])
        if args["threads"] is not None:
            check_int("--threads", args["threads"], 1)
        options = Options(**args, training=TrainSettings(**training))
    except (ValueError, TypeError) as error:
        raise UsageError(name_flags(str(error))) from error
    if (options.target is None) != (options.draft is None):
        raise UsageError("--target and --draft belong together: give both, or none (demo pair)")
    check_directories(options)
    check_prompts(options)
    return options


def check_prompts(options: Options) -> None:
    """Refuse ``--prompts`` that is neither a file nor the name of a set."""
    if options.prompts not in PROMPT_SETS and not Path(options.prompts).is_file():
        raise UsageError(
            f"--prompts was {options.prompts!r}; it must be a file or one of "
            f"{', '.join(PROMPT_SETS)}"
        )


def name_flags(message: str) -> str:
    """A library message that starts with a field's name, with the flag in its place."""
    name = re.match(r"\w*", message)
    flags = ENGINE_FLAGS + DEVICE_FLAGS + WEIGHTS_FLAGS + SAMPLING_FLAGS + TRAIN_FLAGS
    if name is None or name[0] not in flags:
        return message
    return "--" + name[0].replace("_", "-") + message[name.end() :]


def _check_engine(engine: dict[str, Any]) -> None:
    for name in ("gamma", "k_max", "max_ngram", "window", "draft_sms"):
        if name in engine:
            check_int(name, engine[name], 1)
    if "epsilon" in engine:
        check_float("epsilon", engine["epsilon"], 0.0, 1.0)


def _check_together(options: Options) -> None:
    """Flags that exclude or need each other."""
    given = (options.prompt is not None, options.file is not None, bool(options.prompts))
    if sum(given) != 1:
        raise UsageError("give one of PROMPT, --file F and --prompts F")
    _check_batch(options)
    if options.system is not None and not options.chat:
        raise UsageError("--system was given without --chat; only a chat has a system message")
    policy = options.engine.get("policy", "specbranch")
    _check_draft(options, policy)
    check_directories(options)
    if options.hrad is not None and policy != "specbranch":
        raise UsageError(f"--hrad was given with --policy {policy}; only specbranch asks H-RAD")
    check_hrad(options)
    if options.show and options.json:
        raise UsageError("--show and --json exclude each other; the JSON object has the origins")


def _check_batch(options: Options) -> None:
    """``--prompts`` and what goes with it."""
    if options.prompts and not Path(options.prompts).is_file():
        raise UsageError(f"--prompts was {options.prompts!r}; it must be a file")
    if options.prompts and options.show:
        raise UsageError("--show was given with --prompts; it colours one prompt's text")
    if options.batch is None:
        return
    if not options.prompts:
        raise UsageError("--batch was given without --prompts; one prompt is no batch")
    try:
        check_int("--batch", options.batch, 1)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_draft(options: Options, policy: str) -> None:
    """What the draft is, and whether the policy asks for one."""
    if options.draft is not None and options.target is None:
        raise UsageError("--draft was given without --target; it needs the model it drafts for")
    check_layer_skip(options)
    has_draft = options.draft is not None or options.layer_skip is not None
    if options.target is not None and not has_draft and policy not in WITHOUT_DRAFT:
        raise UsageError(
            f"--policy {policy} needs a draft model: give --draft DIR, --layer-skip N or "
            "--policy ar"
        )
    for flag, given in (
        ("--draft-device", options.draft_device),
        ("--draft-weights", options.draft_weights),
        ("--layer-skip", options.layer_skip),
    ):
        if given is not None and policy in WITHOUT_DRAFT:
            raise UsageError(f"{flag} was given with --policy {policy}, which has no draft")


def check_layer_skip(options: Options) -> None:
    """Refuse ``--layer-skip`` that is no number of layers, or beside another draft."""
    if options.layer_skip is None:
        return
    try:
        check_int("--layer-skip", options.layer_skip, 1)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    if options.draft is not None:
        raise UsageError("--layer-skip and --draft exclude each other; both name the draft")
    if options.draft_device is not None:
        raise UsageError("--draft-device was given with --layer-skip, which shares the target's")
    if options.draft_weights is not None:
        raise UsageError("--draft-weights was given with --layer-skip, which shares the target's")


def model_names(options: Options) -> tuple[str, str]:
    """Of target and draft, without the folders that they are in."""
    target = "demo/target" if options.target is None else options.target.resolve().name
    draft = "demo/draft" if options.draft is None else options.draft.resolve().name
    if options.target_weights != "exact":
        target += f", {options.target_weights} weights"
    if options.weights_of_draft != "exact":
        draft += f", {options.weights_of_draft} weights"
    if options.layer_skip is not None:
        draft = f"{target}, first {options.layer_skip} layers"
    return target, draft


def check_folder(flag: str, given: Path, folder: Path) -> None:
    """Make ``folder`` if need be and try to write there: before a run, not behind it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"{flag} was {str(given)!r}; it must be where files can be written "
            f"({error.strerror or error})"
        ) from error


def check_output(path: Path) -> None:
    """Refuse ``-o`` that no file can be written to: before a run, not behind it."""
    if path.is_dir():
        raise UsageError(f"-o was {str(path)!r}, a directory; it must be a file's name")
    check_folder("-o", path, path.parent)


def check_hrad(options: Options) -> None:
    """Refuse ``--hrad`` that is neither a file nor the demo's."""
    if options.hrad not in (None, DEMO) and not Path(str(options.hrad)).is_file():
        raise UsageError(
            f"--hrad was {options.hrad!r}; it must be a file that train-hrad wrote, or {DEMO}"
        )


def check_directories(options: Options) -> None:
    """Refuse checkpoints that are neither directories nor GGUF files."""
    for flag, path in (("--target", options.target), ("--draft", options.draft)):
        if path is None or path.is_dir() or (path.is_file() and path.suffix.lower() == ".gguf"):
            continue
        raise UsageError(
            f"{flag} was {str(path)!r}; it must be a checkpoint directory or a .gguf file"
        )


def _parser() -> _Parser:
    parser = _Parser(prog="specbranch", description="Lossless speculative decoding.")
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        default=argparse.SUPPRESS,
        help="print the version and exit",
    )
    from specbranch.cli.bench_options import add_bench

    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    generate = commands.add_parser(
        "generate",
        help="continue a prompt",
        description="Continue PROMPT. Without --target and --draft the demo pair is used.",
    )
    _add_prompt(generate)
    add_layer_skip(add_models(generate))
    _add_method(generate)
    _add_sampling(generate)
    _add_output(generate)
    train = commands.add_parser(
        "train-hrad",
        help="train the H-RAD predictor of a pair",
        description="Train the H-RAD predictor of a pair: run it over prompts, learn from the "
        "target's hidden states how much of a draft holds. An interrupted run goes on when the "
        "same command is given again. Without --target and --draft: the demo pair.",
    )
    add_models(train)
    _add_training(train)
    from specbranch.cli.plan_options import add_plan

    bench, plan = add_bench(commands), add_plan(commands)
    info = commands.add_parser(
        "info", help="print versions, backends, devices, build flags, and sizes of models"
    )
    info.add_argument("--target", type=Path, metavar="DIR", help="checkpoint to be described")
    info.add_argument("--draft", type=Path, metavar="DIR", help="another one")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    for command in (generate, train, bench, plan, info):
        command.add_argument(
            "-v", "--verbose", action="store_true", help="log diagnostics to stderr"
        )
    return parser


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="text; - reads stdin")
    parser.add_argument("--file", type=Path, metavar="F", help="read the prompt from a file")
    parser.add_argument(
        "--prompts",
        default="",
        metavar="F",
        help="several prompts, decoded side by side: a file with one a line, or .jsonl",
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help="most of them at a time, default 8; with --prompts"
    )
    parser.add_argument(
        "--chat", action="store_true", help="the prompt is a message: use the chat template"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message before it, with --chat")


def add_models(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The flags that name the pair, its devices and its type; the group they are in."""
    group = parser.add_argument_group("models")
    group.add_argument("--target", type=Path, metavar="DIR", help="checkpoint or .gguf, decoded")
    group.add_argument("--draft", type=Path, metavar="DIR", help="small one that guesses")
    group.add_argument("--device", default="cpu", metavar="D", help="cpu (default), cuda or cuda:N")
    group.add_argument("--draft-device", metavar="D", help="the draft's, if another than --device")
    group.add_argument("--dtype", default="auto", choices=DTYPES, help="default auto")
    group.add_argument(
        "--target-weights",
        default="exact",
        choices=WEIGHTS,
        help="default exact; int8 rounds the matrices: another target, another output",
    )
    group.add_argument(
        "--draft-weights", choices=WEIGHTS, help="the draft's: the output stays the target's"
    )
    return group


def add_layer_skip(group: argparse._ArgumentGroup) -> None:
    """The flag that makes the draft out of the target."""
    group.add_argument(
        "--layer-skip", type=int, metavar="N", help="draft with the target's first N layers"
    )


def _add_method(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("method (the output's distribution is the same for all)")
    group.add_argument(
        "--policy",
        choices=POLICIES,
        help=f"default specbranch; {', '.join(WITHOUT_DRAFT)} need no draft model",
    )
    group.add_argument("--gamma", type=int, metavar="N", help="draft length")
    group.add_argument("--k-max", type=int, metavar="N", help="most branches at a branch point")
    group.add_argument(
        "--epsilon", type=float, metavar="X", help="confidence below which a draft is cut"
    )
    group.add_argument(
        "--hrad",
        metavar="FILE",
        help="predictor that train-hrad wrote, or demo; --gamma is then that of the file",
    )
    group.add_argument("--draft-stage", choices=DRAFT_STAGES, help="what follows a rejection")
    group.add_argument("--verify", choices=VERIFICATIONS, help="how drafted tokens are judged")
    group.add_argument("--max-ngram", type=int, metavar="N", help="ngram: longest end looked up")
    group.add_argument(
        "--draft-sms", type=int, metavar="N", help="multiprocessors the draft may use (CUDA)"
    )
    group.add_argument("--window", type=int, metavar="N", help="lookahead: positions guessed at")


def _add_training(parser: argparse.ArgumentParser) -> None:
    default = TrainSettings()
    add = parser.add_argument_group("training").add_argument
    add("--prompts", required=True, metavar="FILE", help="one a line, .jsonl, humaneval or stdlib")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="predictor to be written")
    add("--work", type=Path, metavar="DIR", help="examples and checkpoints; kept if given")
    add("--gamma", type=int, metavar="N", help=f"draft length, default {default.gamma}")
    add("--layers", type=int, metavar="K", help=f"last layers read, default {default.layers}")
    add("--n", type=int, metavar="N", help=f"most prompts, default {default.n}")
    add("--max-new-tokens", type=int, metavar="N", help=f"default {default.max_new_tokens}")
    heats = " ".join(f"{value:g}" for value in default.temperatures)
    add("--temperatures", type=float, nargs="+", metavar="X", help=f"default {heats}")
    add("--epochs", type=int, metavar="N", help=f"default {default.epochs}")
    add("--batch", type=int, metavar="N", help=f"default {default.batch}")
    add("--unbalanced", action="store_true", help="every example counts the same, not every class")
    add("--seed", type=int, metavar="N", help=f"default {default.seed}; same seed, same file")
    add("--threads", type=int, metavar="N", help="CPU cores, default all")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--temperature", type=float, metavar="X", help="default 0, greedy")
    group.add_argument("--top-k", type=int, metavar="N", help="default 0, off")
    group.add_argument("--top-p", type=float, metavar="X", help="default 1, off")
    group.add_argument("--min-p", type=float, metavar="X", help="default 0, off")
    group.add_argument("--seed", type=int, metavar="N", help="default 0; same seed, same output")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="default 128")
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text; may be repeated"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--stats", action="store_true", help="print a summary to stderr")
    group.add_argument("--show", action="store_true", help="colour tokens by where they came from")
    group.add_argument("--json", action="store_true", help="print one JSON object, at the end")
