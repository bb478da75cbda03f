"""What ``policy="auto"`` believes while it learns, beside what is so.

    python bench/auto_beliefs.py --autos 4 --out beliefs.json

Engines that know nothing at first take turns with fixed choices, prompt by prompt. What a round of
a fixed choice takes is known from all of its rounds, what it brings from those of the prompts
around; of both, logarithms beside those of ``sps`` with gamma 3 are compared with what an engine
believes. An error of 0.05 is one of 5 %. The two make up how an arm that is 3 % behind can look
best: too many tokens (the text has changed, or branches were compared on another one), or too few
seconds (the machine has changed, or rounds behind a change of arms are not like others).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import auto
import machine

from specbranch import SamplingParams
from specbranch.comparison.measure import Contestant
from specbranch.comparison.run import interleaved, warm_up
from specbranch.comparison.runs import Run
from specbranch.prompts import read_prompts
from specbranch.tuning import Arm

REFERENCE = Arm("sps", 3)
FIXED = {
    "ar": Arm("ar"),
    "sps:gamma=1": Arm("sps", 1),
    "sps:gamma=2": Arm("sps", 2),
    "sps:gamma=3": REFERENCE,
    "sps:gamma=4": Arm("sps", 4),
    "specbranch:gamma=4,k_max=4,draft_stage=serial": Arm("specbranch", 4, 4, "serial"),
}
AROUND = 20  # prompts, on either side


class Belief(NamedTuple):
    """Of one engine after a prompt: logarithms of tokens and of seconds a round, by arm."""

    best: Arm
    tokens: dict[Arm, float]
    seconds: dict[Arm, float]


def main() -> int:
    """Run what the command line asks for."""
    args = _parser().parse_args()
    target, draft, tokenizer = auto.models_of(None, args.sigma)
    prompts = [tokenizer.encode(text) for text in read_prompts(args.prompts, args.n)]
    params = SamplingParams(max_new_tokens=args.max_new_tokens)
    fixed = [name for name in FIXED if name != "ar"]
    all_of_them = auto.contestants_of(target, draft, fixed, args.autos, control=False)
    contestants = {each.method.name: each for each in all_of_them}
    for name in FIXED:
        warm_up(contestants[name], prompts[0], params)
    runs: dict[Arm, list[Run]] = {arm: [] for arm in FIXED.values()}
    beliefs: dict[str, list[Belief]] = {name: [] for name in contestants if name not in FIXED}
    for run in interleaved(list(contestants.values()), prompts, params, 1, lambda name: None):
        if run.method in FIXED:
            runs[FIXED[run.method]].append(run)
        else:
            beliefs[run.method].append(_believed(contestants[run.method]))
    found = [
        {"engine": name, "prompt": at + 1, **_errors(some[at], runs, at)}
        for at in _shown(len(prompts))
        for name, some in beliefs.items()
    ]
    sys.stdout.write(_table(found))
    if args.out is not None:
        about = machine.record("auto-beliefs", "cpu") | {"found": found}
        args.out.write_text(json.dumps(about, indent=1) + "\n")
    return 0


def _believed(contestant: Contestant) -> Belief:
    tuner = contestant._engine._method.tuner
    tokens, seconds = tuner.beliefs()
    return Belief(
        tuner.best,
        dict(zip(tuner.arms, tokens.mean.tolist(), strict=True)),
        dict(zip(tuner.arms, seconds.mean.tolist(), strict=True)),
    )


def _errors(believed: Belief, runs: dict[Arm, list[Run]], at: int) -> dict[str, Any]:
    """Of the fixed choices, beside the reference: what is believed less what is so."""
    around = slice(max(0, at - AROUND), at + AROUND + 1)
    tokens = {arm: _tokens_a_round(some[around]) for arm, some in runs.items()}
    seconds = {arm: _seconds_a_round(some) for arm, some in runs.items()}
    return {
        "best": _name(believed.best),
        "tokens": _beside_reference(believed.tokens, tokens),
        "seconds": _beside_reference(believed.seconds, seconds),
    }


def _beside_reference(believed: dict[Arm, float], so: dict[Arm, float]) -> dict[str, float]:
    off = {arm: believed[arm] - math.log(each) for arm, each in so.items()}
    return {_name(arm): round(off[arm] - off[REFERENCE], 3) for arm in so if arm != REFERENCE}


def _tokens_a_round(runs: Sequence[Run]) -> float:
    return sum(len(run.tokens) for run in runs) / sum(run.counters["rounds"] for run in runs)


def _seconds_a_round(runs: Sequence[Run]) -> float:
    """After the prompt was processed."""
    seconds = sum(run.seconds - run.prefill_seconds for run in runs)
    return seconds / sum(run.counters["rounds"] for run in runs)


def _name(arm: Arm) -> str:
    return f"{arm.family} {arm.gamma}" if arm.gamma else arm.family


def _shown(prompts: int) -> list[int]:
    return sorted({min(prompts, each) - 1 for each in (5, 10, 20, 40, 80, 160, 320, prompts)})


def _table(found: Sequence[dict[str, Any]]) -> str:
    names = list(found[0]["tokens"])
    heads = [f"{name}: tokens, seconds" for name in names]
    rows = [["prompts", "engine", "runs", *heads], ["---"] * (3 + len(heads))]
    for each in found:
        errors = [f"{each['tokens'][name]:+.3f}, {each['seconds'][name]:+.3f}" for name in names]
        rows.append([str(each["prompt"]), each["engine"], each["best"], *errors])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, metavar="F", help="result file (JSON)")
    add("--sigma", type=float, default=0.0, help="noise in the draft of the demo pair")
    add("--autos", type=int, default=4, help="engines with policy auto")
    add("--prompts", default="humaneval", help="humaneval, or a file of prompts")
    add("--n", type=int, default=164, help="how many prompts")
    add("--max-new-tokens", type=int, default=128)
    return parser


if __name__ == "__main__":
    sys.exit(main())
