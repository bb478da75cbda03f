"""Prediction against measurement: ``specbranch plan`` on a machine that is at hand.

    python bench/plan_check.py --out bench/results/plan.json
    python bench/plan_check.py --inflate 1b 68m --n 4 --out bench/results/NAME.json

Records traces of the pair, measures what its forwards cost here, predicts the speed of each method
from both, and runs the real engine on the same prompts. Engines that measure costs and engines that
are measured take turns prompt by prompt, in a new order each time, several times over, so that a
machine that slows down slows all of them; of the repeats of a prompt the median counts. Time runs
from the first round to the end of the last: a plan knows nothing of a request's own set-up and of
its prompt. The exit code is 1 where a speedup is off by more than ``--within``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import machine
from methods import Weights
from shapes import SHAPES

from specbranch import Engine, SamplingParams, load_tokenizer
from specbranch.lanes import SerialLanes, num_cores
from specbranch.models import CausalLM
from specbranch.pair import DEMO_DIR
from specbranch.planning import Hardware, Origin, Traces, record_traces
from specbranch.planning.measure import Measurement
from specbranch.planning.simulate import Prediction, Simulator
from specbranch.prompts import read_prompts
from specbranch.session import Settings
from specbranch.stats import Stats
from specbranch.timeline import Timeline


@dataclass(frozen=True)
class Method:
    """A policy with its settings, and whether its lanes take turns."""

    policy: str
    settings: Settings
    serial: bool

    @property
    def name(self) -> str:
        """For tables."""
        lanes = "serial lanes" if self.serial else "thread lanes"
        settings = self.settings
        stage = f" {settings.draft_stage}" if self.policy == "specbranch" else ""
        return (
            f"{self.policy}{stage} gamma={settings.gamma} k_max={settings.k_max} "
            f"epsilon={settings.epsilon:g}, {lanes}"
        )

    def engine(self, target: CausalLM, draft: CausalLM, threads: int) -> Engine:
        """The real one."""
        settings = self.settings
        return Engine(
            target, draft, policy=self.policy, gamma=settings.gamma, k_max=settings.k_max,
            epsilon=settings.epsilon, draft_stage=settings.draft_stage, verify=settings.verify,
            threads=threads, rounds="host", lanes=SerialLanes(threads) if self.serial else None,
        )  # fmt: skip

    def predict(self, traces: Traces, hardware: Hardware) -> Prediction:
        """From traces and costs."""
        lanes = replace(hardware, parallel=not self.serial)
        return Simulator(traces, lanes).run(self.policy, self.settings)


def methods(verify: str) -> list[Method]:
    """What is predicted and run; the first is the baseline."""
    both = [
        ("specbranch", {"gamma": 4, "k_max": 4, "epsilon": 0.0}),
        ("specbranch", {"gamma": 4, "k_max": 4, "epsilon": 0.3}),
        ("specbranch", {"gamma": 3, "k_max": 1, "epsilon": 0.0, "draft_stage": "serial"}),
        ("specbranch", {"gamma": 4, "k_max": 4, "epsilon": 0.3, "draft_stage": "serial"}),
        ("pearl", {"gamma": 4}),
        ("fanout", {"gamma": 3, "k_max": 4, "epsilon": 0.1}),
    ]
    alone = [("ar", {}), ("sps", {"gamma": 2}), ("sps", {"gamma": 4}), ("ngram", {"gamma": 4}),
             ("adaedl", {"gamma": 6, "epsilon": 0.1})]  # fmt: skip
    given = [(*each, True) for each in alone + both] + [(*each, False) for each in both]
    return [
        Method(policy, Settings(verify=verify, **settings), serial)
        for policy, settings, serial in given
    ]


def main() -> int:
    """Run what the command line asks for and write the result file."""
    args = _arguments()
    shapes = args.inflate or (None, None)
    folders = args.target or DEMO_DIR / "target", args.draft or DEMO_DIR / "draft"
    target, draft = (
        Weights(folder, "cpu", args.dtype, shape).ours()
        for folder, shape in zip(folders, shapes, strict=True)
    )
    tokenizer = load_tokenizer(folders[0])
    prompts = [tokenizer.encode(text) for text in read_prompts(args.prompts, args.n)]
    params = SamplingParams(args.max_new_tokens, args.temperature, seed=args.seed)
    origin = Origin("target", "draft", prompts=args.prompts)
    traces = record_traces(target, draft, prompts, params, verify=args.verify, origin=origin)
    hardware, runs = _measure(args, target, draft, prompts, params)
    rows = _rows(methods(args.verify), traces, hardware, runs)
    result = machine.record("plan", "cpu") | _about(args, traces, hardware) | {"methods": rows}
    result["worst"] = worst = max(abs(row["predicted_over_measured"] - 1.0) for row in rows)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _log(f"wrote {args.out}; the worst prediction is off by {100 * worst:.1f} %")
    return int(worst > args.within)


@dataclass(frozen=True)
class Run:
    """One request: its counters, and seconds from the first round to the end of the last."""

    stats: Stats
    seconds: float


def _run(engine: Engine, prompt: list[int], params: SamplingParams, runs: list[Run]) -> None:
    timeline = Timeline()
    stats = engine.generate(prompt, params, timeline=timeline).stats
    spans = [span for span in timeline.spans if span.work != "prefill"]
    seconds = max(span.end for span in spans) - min(span.start for span in spans)
    runs.append(Run(stats, seconds))


Runs = dict[Method, dict[int, list[Run]]]


def _measure(
    args: argparse.Namespace,
    target: CausalLM,
    draft: CausalLM,
    prompts: list[list[int]],
    params: SamplingParams,
) -> tuple[Hardware, Runs]:
    """Costs, and the statistics of each method's requests by prompt."""
    engines = {each: each.engine(target, draft, args.threads) for each in methods(args.verify)}
    measurement = Measurement(target, draft, verify=args.verify, threads=args.threads)
    measurement.warm_up(prompts[0])
    for engine in engines.values():
        engine.generate(prompts[0], SamplingParams(max_new_tokens=4))
    runs: Runs = defaultdict(lambda: defaultdict(list))
    shuffle = random.Random(args.seed).shuffle
    for repeat in range(args.repeats):
        for idx, prompt in enumerate(prompts):
            own = replace(params, seed=params.seed + idx)
            tasks = measurement.tasks(prompt, own)
            tasks += [
                partial(_run, engine, prompt, own, runs[method][idx])
                for method, engine in engines.items()
            ]
            shuffle(tasks)
            for task in tasks:
                task()
            _log(f"repeat {repeat + 1} of {args.repeats}, prompt {idx + 1} of {len(prompts)}")
    return measurement.hardware(), runs


def _rows(
    order: list[Method], traces: Traces, hardware: Hardware, runs: Runs
) -> list[dict[str, Any]]:
    """Predicted and measured speed of each method."""
    measured = {method: _measured(runs[method]) for method in order}
    base = measured[order[0]]["tokens_per_second"]
    rows = []
    for method in order:
        found, real = method.predict(traces, hardware), measured[method]
        speedup = real["tokens_per_second"] / base
        row = {
            "method": method.name,
            "predicted_speedup": found.speedup,
            "measured_speedup": speedup,
            "predicted_over_measured": found.speedup / speedup,
            "predicted_tokens_per_second": 1e3 * found.stats.new_tokens / found.stats.seconds,
            "predicted_tokens_per_round": found.stats.tokens_per_round,
            "predicted_bubble": found.stats.bubble,
            "zero_bubble_speedup": found.zero_bubble,
            "measured": real,
        }
        rows.append(row)
        _log(
            f"{method.name:66s} predicted {found.speedup:5.2f} measured {speedup:5.2f} "
            f"ratio {row['predicted_over_measured']:5.2f}"
        )
    return rows


def _measured(by_prompt: dict[int, list[Run]]) -> dict[str, float]:
    """Sums over prompts; of the repeats of a prompt, the median time."""
    firsts = [repeats[0].stats for repeats in by_prompt.values()]
    seconds = sum(median(run.seconds for run in repeats) for repeats in by_prompt.values())
    busy = sum(
        median(run.stats.target_seconds for run in repeats) for repeats in by_prompt.values()
    )
    committed, forwards = (
        sum(getattr(each, name) for each in firsts) for name in ("committed", "target_forwards")
    )
    return {
        "tokens_per_second": sum(each.new_tokens for each in firsts) / seconds,
        "tokens_per_round": committed / forwards,
        "bubble": max(0.0, 1.0 - busy / seconds),
    }


def _about(args: argparse.Namespace, traces: Traces, hardware: Hardware) -> dict[str, Any]:
    names = ("inflate", "dtype", "prompts", "n", "max_new_tokens", "temperature", "verify",
             "repeats", "seed", "threads", "within")  # fmt: skip
    return {
        "settings": {name: getattr(args, name) for name in names},
        "acceptance_rate": traces.acceptance_rate,
        "costs_ms": hardware.to_dict(),
    }


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")


def _arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="F", help="result file (JSON)")
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--inflate", nargs=2, choices=SHAPES, metavar=("TARGET", "DRAFT"))
    add("--prompts", default="humaneval", help="humaneval, stdlib or a file")
    add("--n", type=int, default=6, help="how many prompts")
    add("--max-new-tokens", type=int, default=96)
    add("--temperature", type=float, default=0.0)
    add("--verify", default="rejection", choices=("rejection", "coupled"))
    add("--repeats", type=int, default=5, help="of each prompt; the median counts")
    add("--seed", type=int, default=0, help="of the first prompt; the next ones count up")
    add("--threads", type=int, default=num_cores(), help="CPU cores")
    add("--within", type=float, default=0.15, help="largest error of a speedup for exit code 0")
    add("--target", type=Path, metavar="DIR", help="default: the demo pair")
    add("--draft", type=Path, metavar="DIR")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
