"""``specbranch plan``: what to expect of each policy on given hardware."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from specbranch.cli.generate import load_models, load_predictor
from specbranch.cli.options import Options, UsageError, name_flags
from specbranch.cli.plan_options import PlanOptions

if TYPE_CHECKING:
    from specbranch.models import CausalLM
    from specbranch.planning import Hardware, Plan, Prediction, Traces
    from specbranch.tokenizer import Tokenizer

Pair = tuple["CausalLM", "CausalLM", "Tokenizer"]
FEWEST = 20  # of a table's rows that were measured, to print


def plan(options: Options) -> int:
    """Run the command; the return value is the exit code."""
    own = options.plan
    assert own is not None, "the parser has made it"
    try:
        _check_policies(own)
        hardware = None if own.record or own.measure else _given_hardware(own)
        pair = _pair(options) if own.traces is None or own.measure else None
        traces = _traces(options, own, pair)
        if own.record:
            sys.stdout.write(f"{_about(traces)}\nwritten to {options.output}\n")
            return 0
        hardware = hardware or _measured_hardware(options, own, pair)
        found = _plan(traces, hardware, own)
    except (ValueError, TypeError) as error:
        raise UsageError(_name_flags(str(error))) from error
    unit = None if own.ratio is not None else "ms"
    if options.json:
        sys.stdout.write(json.dumps(_object(traces, hardware, found, unit)) + "\n")
    else:
        sys.stdout.write("\n".join(_lines(traces, hardware, found, unit)) + "\n")
    return 0


def _pair(options: Options) -> Pair:
    target, draft, tokenizer = load_models(options)
    assert draft is not None, "the options name both models or none"
    return target, draft, tokenizer


# ------------------------------------------------------------------------------ traces
def _traces(options: Options, own: PlanOptions, pair: Pair | None) -> Traces:
    from specbranch.planning import Origin, Traces, record_traces

    if own.traces is not None:
        return Traces.load(own.traces)
    assert pair is not None, "it was loaded"
    target, draft, _ = pair
    predictor = None if options.hrad is None else load_predictor(options.hrad, target)
    names = ("demo/target", "demo/draft")
    if options.target is not None and options.draft is not None:
        names = (options.target.resolve().name, options.draft.resolve().name)
    traces = record_traces(
        target,
        draft,
        _prompts(options, own, pair),
        options.sampling,
        verify=own.verify,
        rollout=own.rollout,
        predictor=predictor,
        origin=Origin(*names, prompts=options.prompts),
    )
    if options.output is not None:
        traces.save(options.output)
    return traces


def _prompts(options: Options, own: PlanOptions, pair: Pair) -> list[list[int]]:
    from specbranch.prompts import read_prompts

    try:
        texts = read_prompts(options.prompts, own.n, options.sampling.seed)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise UsageError(f"--prompts: {error}") from error
    return [pair[2].encode(text) for text in texts]


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
    return Hardware(replace(costs, join=own.join, stage=own.stage), parallel=own.parallel)


def _measured_hardware(options: Options, own: PlanOptions, pair: Pair | None) -> Hardware:
    from specbranch.planning import measure_costs

    assert pair is not None, "it was loaded"
    prompts = _prompts(options, own, pair)
    return measure_costs(
        pair[0], pair[1], prompts, options.sampling, parallel=own.parallel, verify=own.verify
    )


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
    pair = f"{origin.target or 'target'} and {origin.draft or 'draft'}"
    return (
        f"{pair}: {count} prompts ({origin.prompts or 'unnamed'}), {tokens} tokens, temperature "
        f"{origin.temperature:g}, {origin.verify}, acceptance {traces.acceptance_rate:.2f}"
    )


def _lines(traces: Traces, hardware: Hardware, found: Plan, unit: str | None) -> list[str]:
    rate = "tokens/s" if unit else "tokens/draft"
    head = (
        f"{'policy':<24}{'gamma':>6}{'k_max':>6}{'epsilon':>8}{'speedup':>9}{rate:>13}"
        f"{'per round':>11}{'RB':>6}{'bubble':>8}{'limit':>7}"
    )
    lanes = "in parallel" if hardware.parallel else "one after the other"
    return [
        _about(traces),
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
        "hardware": hardware.to_dict() | {"unit": unit or "draft forwards"},
        "num_tried": found.num_tried,
        "best": [each.to_dict() for each in found.best],
    }
