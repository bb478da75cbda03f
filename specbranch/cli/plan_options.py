"""The flags of ``specbranch plan``: traces, costs and the grid of settings."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbranch.cli import options as shared
from specbranch.sampling_params import SamplingParams, check_float, check_int

DEFAULT_N, DEFAULT_TOKENS = 8, 64
# Defaults here are those of specbranch.planning, which imports torch.
POLICIES = ("ar", "sps", "specbranch", "fanout", "pearl", "adaedl", "ngram")
NOT_REPLAYED = ("lookahead", "auto")  # named here so that the error says why
GAMMAS, K_MAXES, EPSILONS = (1, 2, 3, 4, 6, 8), (1, 2, 4, 8), (0.0, 0.1, 0.2, 0.4, 0.6)
# Of flags that have one in the parser.
DEFAULTS = {"device": "cpu", "dtype": "auto", "target_weights": "exact"}
_HOST = ("join_ms", "draft_overhead_ms")
_RECORDING = ("rollout", "hrad")
_REPLAYING = (
    "speed_ratio", "target_ms", "draft_ms", *_HOST, "measure", "parallel", "serial", "policies",
    "gammas", "k_maxes", "epsilons", "json",
)  # fmt: skip
_SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed")
_RUNNING = (
    "target", "draft", "layer_skip", "device", "draft_device", "dtype", "target_weights",
    "draft_weights", "prompts", "n", "verify", *_SAMPLING,
)  # fmt: skip


@dataclass(frozen=True)
class PlanOptions:
    """What ``plan`` takes besides models and sampling.

    Args:
        traces: file to replay; None: record them now.
        record: record, and do nothing else.
        n: most prompts. ``rollout``: tokens drafted ahead of each position.
        ratio, target_time, draft_time, join, stage: what forwards cost, as it was typed.
        measure: measure that on this machine.
        parallel: whether the two lanes run at the same time.
        policies, gammas, k_maxes, epsilons: what to try.
    """

    traces: Path | None = None
    record: bool = False
    n: int = DEFAULT_N
    rollout: int = 16
    verify: str = "rejection"
    ratio: float | None = None
    target_time: str | None = None
    draft_time: str | None = None
    join: float = 0.0
    stage: float = 0.0
    measure: bool = False
    parallel: bool = True
    policies: tuple[str, ...] = POLICIES
    gammas: tuple[int, ...] = GAMMAS
    k_maxes: tuple[int, ...] = K_MAXES
    epsilons: tuple[float, ...] = EPSILONS


def add_plan(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the parser's."""
    plan: argparse.ArgumentParser = commands.add_parser(
        "plan",
        help="predict the speedup of each policy on other hardware",
        description="Record what a pair says, once, then replay policies over it (all but "
        f"{' and '.join(NOT_REPLAYED)}) with given times of a forward, and print the best setting "
        "of each. Without --target and --draft: the demo pair.",
    )
    shared.add_layer_skip(shared.add_models(plan))
    _add_traces(plan)
    _add_costs(plan)
    _add_grid(plan)
    plan.add_argument("--json", action="store_true", help="print one JSON object")
    return plan


def _add_traces(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("traces").add_argument
    add("--traces", type=Path, metavar="FILE", help="replay these; default: record some now")
    add("--record", action="store_true", help="only record; needs -o")
    add("-o", "--output", type=Path, metavar="FILE", help="keep what is recorded (.safetensors)")
    add("--prompts", metavar="FILE", help="one a line, .jsonl, humaneval or stdlib (default)")
    add("--n", type=int, metavar="N", help=f"most prompts, default {DEFAULT_N}")
    add("--max-new-tokens", type=int, metavar="N", help=f"a prompt, default {DEFAULT_TOKENS}")
    add("--temperature", type=float, metavar="X", help="default 0, greedy")
    add("--top-k", type=int, metavar="N", help="default 0, off")
    add("--top-p", type=float, metavar="X", help="default 1, off")
    add("--min-p", type=float, metavar="X", help="default 0, off")
    add("--seed", type=int, metavar="N", help="of the first prompt; default 0")
    add("--verify", choices=shared.VERIFICATIONS, help="how drafted tokens are judged")
    add("--rollout", type=int, metavar="N", help="tokens drafted ahead; gamma must be below it")
    add("--hrad", metavar="FILE", help="predictor that train-hrad wrote, or demo")


def _add_costs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("costs", "ROWS:MS,.. is linear between the points.")
    add = group.add_argument
    add("--speed-ratio", type=float, metavar="C", help="a target forward in draft forwards")
    add("--target-ms", metavar="T", help="of a forward over so many tokens: 1:20,5:21,17:24")
    add("--draft-ms", metavar="T", help="of a forward over so many branches: 1:1.4,4:1.5")
    add("--join-ms", type=float, metavar="X", help="a round's verify, commit and host; default 0")
    add("--draft-overhead-ms", type=float, metavar="X", help="of each drafting stage; default 0")
    add("--measure", action="store_true", help="measure all that with the pair, on this machine")
    lanes = group.add_mutually_exclusive_group()
    lanes.add_argument("--parallel", action="store_true", help="lanes run together (default)")
    lanes.add_argument("--serial", action="store_true", help="one lane after the other")


def _add_grid(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("settings to try").add_argument
    add("--policies", nargs="+", choices=POLICIES + NOT_REPLAYED, metavar="P",
        help=f"default {' '.join(POLICIES)}")  # fmt: skip
    add("--gammas", type=int, nargs="+", metavar="N")
    add("--k-maxes", type=int, nargs="+", metavar="N")
    add("--epsilons", type=float, nargs="+", metavar="X")


def plan_options(args: dict[str, Any]) -> shared.Options:
    """The checked options; raises UsageError with a message that names the flag."""
    given = {
        name
        for name, value in args.items()
        if value is not None and value is not False and value != DEFAULTS.get(name)
    }
    if args["prompts"] is None:
        args["prompts"] = "stdlib"
    sampling: dict[str, Any] = {"max_new_tokens": DEFAULT_TOKENS}
    sampling |= {key: value for key in _SAMPLING if (value := args.pop(key)) is not None}
    own = _own(args)
    try:
        params = SamplingParams(**sampling)
        _check_values(own)
    except (ValueError, TypeError) as error:
        raise shared.UsageError(shared.name_flags(str(error))) from error
    options = shared.Options(**args, sampling=params, plan=PlanOptions(**own))
    _check_together(options, PlanOptions(**own))
    _check_used(given)
    return options


def _own(args: dict[str, Any]) -> dict[str, Any]:
    """Takes what is ours out of ``args``, under the names of ``PlanOptions``."""
    args.pop("parallel")
    names = {
        "traces": "traces", "record": "record", "n": "n", "rollout": "rollout", "verify": "verify",
        "speed_ratio": "ratio", "target_ms": "target_time", "draft_ms": "draft_time",
        "join_ms": "join", "draft_overhead_ms": "stage", "measure": "measure",
        "policies": "policies", "gammas": "gammas", "k_maxes": "k_maxes", "epsilons": "epsilons",
    }  # fmt: skip
    given = {name: args.pop(flag) for flag, name in names.items()}
    own = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }
    return own | {"parallel": not args.pop("serial")}


def _check_values(own: dict[str, Any]) -> None:
    for name, flag, most in (
        ("n", "--n", None), ("rollout", "--rollout", 64), ("gammas", "--gammas", 63),
        ("k_maxes", "--k-maxes", 32),
    ):  # fmt: skip
        values = own.get(name, ())
        for value in values if isinstance(values, tuple) else (values,):
            check_int(flag, value, 1, most)
    policies = own.get("policies", ())
    for policy in policies:
        if policies.count(policy) > 1:
            raise ValueError(f"--policies: {policy!r} was given twice")
    for value in own.get("epsilons", ()):
        check_float("--epsilons", value, 0.0, 1.0)
    for name, flag in (("join", "--join-ms"), ("stage", "--draft-overhead-ms")):
        check_float(flag, own.get(name, 0.0), 0.0, 1e9)
    ratio = own.get("ratio")
    if ratio is not None and not 0.0 < ratio < 1e9:
        raise ValueError(f"--speed-ratio was {ratio}; it must be finite and greater than 0")


def _check_together(options: shared.Options, own: PlanOptions) -> None:
    """Flags that exclude or need each other."""
    shared.check_layer_skip(options)
    if options.layer_skip is None and (options.target is None) != (options.draft is None):
        raise shared.UsageError(
            "--target and --draft belong together: give both, or none (demo pair)"
        )
    shared.check_directories(options)
    shared.check_hrad(options)
    shared.check_prompts(options)
    if own.record and own.traces is not None:
        raise shared.UsageError("--record and --traces exclude each other")
    if own.record and options.output is None:
        raise shared.UsageError("--record needs -o FILE, where the traces go")
    if own.traces is not None and options.output is not None:
        raise shared.UsageError("-o was given with --traces; nothing is recorded then")
    if own.traces is not None and not own.traces.is_file():
        raise shared.UsageError(f"--traces was {str(own.traces)!r}; it must be a file")
    if not own.record:
        _check_costs(own)
        _check_devices(options, own)
        if own.traces is None and max(own.gammas) >= own.rollout:
            raise shared.UsageError(
                f"--gammas had {max(own.gammas)}; it must be below --rollout, {own.rollout}"
            )


def _check_devices(options: shared.Options, own: PlanOptions) -> None:
    for flag, device in (("--device", options.device), ("--draft-device", options.draft_device)):
        if own.measure and str(device).startswith("cuda"):
            raise shared.UsageError(
                f"{flag} was {device!r} with --measure; costs can be measured on cpu only: give "
                "--target-ms and --draft-ms instead"
            )


def _check_costs(own: PlanOptions) -> None:
    tables = own.target_time is not None, own.draft_time is not None
    ways = [own.ratio is not None, any(tables), own.measure]
    if sum(ways) != 1 or (any(tables) and not all(tables)):
        raise shared.UsageError(
            "give what forwards cost in one way: --speed-ratio C, --target-ms and --draft-ms, or "
            "--measure"
        )


def _check_used(given: set[str]) -> None:
    """Refuse flags that the others leave without effect, and times in two units."""
    apart = [
        ("record", _REPLAYING, "nothing is replayed then"),
        ("traces", _RECORDING, "nothing is recorded then"),
        ("measure", _HOST, "it is measured too"),
        ("speed_ratio", _HOST, "with a ratio there are no milliseconds: give --target-ms and "
         "--draft-ms"),
    ]  # fmt: skip
    if "measure" not in given:
        apart.append(("traces", _RUNNING, "no model runs then"))
    for flag, others, why in apart:
        ignored = [_flag(name) for name in others if name in given]
        if flag in given and ignored:
            raise shared.UsageError(f"{ignored[0]} was given with {_flag(flag)}; {why}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
