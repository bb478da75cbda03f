"""``specbranch plan``: what to expect of each policy on given hardware."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from specbranch.cli.generate import load_models, load_predictor
from specbranch.cli.options import (
    TRAINED_ON,
    Options,
    UsageError,
    check_output,
    model_names,
    name_flags,
)
from specbranch.cli.plan_options import PlanOptions

if TYPE_CHECKING:
    from pathlib import Path

    from specbranch.models import CausalLM
    from specbranch.planning import Hardware, Plan, Prediction, Traces

FEWEST = 20  # of a table's rows that were measured, to print


class Work(NamedTuple):
    """What is run: a pair and the token ids of its prompts."""

    target: CausalLM
    draft: CausalLM
    prompts: list[list[int]]


def plan(options: Options) -> int:
    """Run the command; the return value is the exit code."""
    own = options.plan
    assert own is not None, "the parser has made it"
    try:
        _check_policies(own)
        hardware = None if own.record or own.measure else _given_hardware(own)
        loaded = None if own.traces is None else _load(own.traces, options, own)
        work = _work(options, own) if loaded is None or own.measure else None
        traces = loaded or _record(options, own, work)
        if own.record:
            lines = [_about(traces), *_notes(traces), f"written to {options.output}"]
            sys.stdout.write("\n".join(lines) + "\n")
            return 0
        hardware = hardware or _measured_hardware(options, own, work)
        found = _plan(traces, hardware, own)
    except (ValueError, TypeError) as error:
        raise UsageError(_name_flags(str(error))) from error
    unit = None if own.ratio is not None else "ms"
    if options.json:
        sys.stdout.write(json.dumps(_object(traces, hardware, found, unit)) + "\n")
    else:
        sys.stdout.write("\n".join(_lines(traces, hardware, found, unit)) + "\n")
    return 0


def _work(options: Options, own: PlanOptions) -> Work:
    """Models and prompts; whether results can be written is seen before."""
    from specbranch.prompts import read_prompts

    if options.output is not None:
        check_output(options.output)
    try:
        texts = read_prompts(options.prompts, own.n, options.sampling.seed)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise UsageError(f"--prompts: {error}") from error
    target, draft, tokenizer = load_models(options)
    assert draft is not None, "the options name a draft with each target"
    return Work(target, draft, [tokenizer.encode(text) for text in texts])


# ------------------------------------------------------------------------------ traces
def _load(path: Path, options: Options, own: PlanOptions) -> Traces:
    """Traces that can be replayed as is asked, on the pair that is measured."""
    from specbranch.planning import Traces
    from specbranch.planning.simulate import check_replayable
    from specbranch.session import Settings

    traces = Traces.load(path)
    for policy, gamma in product(own.policies, own.gammas):
        check_replayable(traces, policy, Settings(gamma=gamma), False)
    theirs = traces.origin.target, traces.origin.draft
    if own.measure and options.target is None and theirs != model_names(options):
        raise UsageError(
            f"--traces are of {_pair(traces)}, and --measure is about the demo pair where no other "
            "is given; give --target and --draft"
        )
    return traces


def _record(options: Options, own: PlanOptions, work: Work | None) -> Traces:
    from specbranch.planning import Origin, record_traces

    assert work is not None, "it was loaded"
    predictor = None if options.hrad is None else load_predictor(options.hrad, work.target)
    traces = record_traces(
        *work,
        options.sampling,
        verify=own.verify,
        rollout=own.rollout,
        predictor=predictor,
        origin=Origin(*model_names(options), prompts=options.prompts),
    )
    if options.output is not None:
        traces.save(options.output)
    return traces


# ------------------------------------------------------------------------------ costs
def _given_hardware(own: PlanOptions) -> Hardware:
    from specbranch.planning import Costs, Hardware
    from specbranch.planning.costs import parse_table

    if own.ratio is not None:
        costs = Costs.of_ratio(own.ratio)
    else:
        costs = Costs(
            parse_table(str(own.target_time), "--target-ms"),
            parse_table(str(own.draft_time), "--draft-ms"),
        )
    if costs.target(1) <= 0.0:
        raise ValueError(f"--target-ms was {own.target_time!r}; a forward must take more than 0")
    return Hardware(replace(costs, join=own.join, stage=own.stage), parallel=own.parallel)


def _measured_hardware(options: Options, own: PlanOptions, work: Work | None) -> Hardware:
    from specbranch.planning import measure_costs

    assert work is not None, "it was loaded"
    return measure_costs(*work, options.sampling, parallel=own.parallel, verify=own.verify)


def _check_policies(own: PlanOptions) -> None:
    """Before anything takes long."""
    from specbranch.planning.simulate import check_policy

    for policy in own.policies:
        check_policy(policy)


def _name_flags(message: str) -> str:
    """A library message with the flags of this command."""
    names = {"policy was": "--policies had", "gamma was": "--gammas had"}
    for start, ours in names.items():
        if message.startswith(start):
            return ours + message[len(start) :]
    return name_flags(message)


def _plan(traces: Traces, hardware: Hardware, own: PlanOptions) -> Plan:
    from specbranch.planning import Grid
    from specbranch.planning import plan as make_plan

    grid = Grid(own.gammas, own.k_maxes, own.epsilons)
    return make_plan(traces, hardware, policies=own.policies, grid=grid)


# ------------------------------------------------------------------------------ output
def _about(traces: Traces) -> str:
    origin, count = traces.origin, len(traces.requests)
    tokens = sum(trace.end for trace in traces.requests)
    return (
        f"{_pair(traces)}: {count} prompts ({origin.prompts or 'unnamed'}), {tokens} tokens, "
        f"temperature {origin.temperature:g}, {origin.verify}, "
        f"acceptance {traces.acceptance_rate:.2f}"
    )


def _pair(traces: Traces) -> str:
    return f"{traces.origin.target or 'target'} and {traces.origin.draft or 'draft'}"


def _notes(traces: Traces) -> list[str]:
    is_own = traces.origin.target == "demo/target" and traces.origin.prompts == "stdlib"
    return [TRAINED_ON] if is_own else []


def _lines(traces: Traces, hardware: Hardware, found: Plan, unit: str | None) -> list[str]:
    rate = "tokens/s" if unit else "tokens/draft"
    head = (
        f"{'policy':<24}{'gamma':>6}{'k_max':>6}{'epsilon':>8}{'speedup':>9}{rate:>13}"
        f"{'per round':>11}{'RB':>6}{'bubble':>8}{'limit':>7}"
    )
    lanes = "in parallel" if hardware.parallel else "one after the other"
    return [
        _about(traces),
        *_notes(traces),
        f"lanes {lanes}; {_costs(hardware, unit)}",
        "",
        head,
        *(_row(each, unit) for each in found.best),
        "",
        f"{found.num_tried} settings replayed; limit: the speedup if the target never waited",
    ]


def _costs(hardware: Hardware, unit: str | None) -> str:
    costs = hardware.alone
    name = unit or "draft forwards"
    return f"target {_short(costs.target.points)}, draft {_short(costs.draft.points)} ({name})"


def _short(points: list[tuple[int, float]]) -> str:
    return ",".join(f"{rows}:{time:.3g}" for rows, time in points[:FEWEST])


def _row(each: Prediction, unit: str | None) -> str:
    from specbranch.planning.simulate import STAGED

    stats, settings = each.stats, each.settings
    scale = 1e3 if unit else 1.0
    knows_k = each.policy in STAGED
    cells = [
        "-" if each.policy == "ar" else str(settings.gamma),
        str(settings.k_max) if knows_k else "-",
        f"{settings.epsilon:g}" if knows_k or each.policy == "adaedl" else "-",
    ]
    return (
        f"{each.name:<24}{cells[0]:>6}{cells[1]:>6}{cells[2]:>8}{each.speedup:>9.2f}"
        f"{scale * stats.new_tokens / stats.seconds:>13.2f}{stats.tokens_per_round:>11.2f}"
        f"{stats.rollback_rate:>6.2f}{stats.bubble:>8.2f}{each.zero_bubble:>7.2f}"
    )


def _object(traces: Traces, hardware: Hardware, found: Plan, unit: str | None) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "traces": asdict(traces.origin) | {"acceptance_rate": traces.acceptance_rate},
        "notes": _notes(traces),
        "hardware": hardware.to_dict() | {"unit": unit or "draft forwards"},
        "num_tried": found.num_tried,
        "best": [each.to_dict() for each in found.best],
    }
