"""What each part of the method is worth: by replay of real traces, and by the clock.

    python bench/ablation.py --out bench/results/ablation.json
    python bench/ablation.py --repeat 3 --measure 8 --out ...    # and real runs of the main methods

For each pair (the demo pair, and its target with a draft that noise has made worse, see
``worse_draft.py``), each kind of prompt and each temperature, traces of the pair are recorded once
and every policy is replayed over them where a target forward takes ``--speed-ratio`` draft forwards
and the two lanes run at the same time (``specbranch.planning``). Counts (M, RB, hits) depend on
neither machine nor clock. H-RAD is trained here for each pair and each K, on pieces of the standard
library, from one collection of examples. ``bench/report.py`` makes the tables of docs/method.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import machine
from worse_draft import SIGMA, noisy_draft

from specbranch import HRad, SamplingParams, demo_pair
from specbranch.comparison import compare
from specbranch.hrad.collect import Collection, Examples
from specbranch.hrad.evaluate import as_object, evaluate
from specbranch.hrad.fit import Fit
from specbranch.hrad.settings import TrainSettings
from specbranch.hrad.train import split
from specbranch.lanes import SerialLanes
from specbranch.models import CausalLM
from specbranch.planning import Costs, Hardware, Simulator, Traces, record_traces
from specbranch.predictor import HRadConfig, embedding_of
from specbranch.prompts import read_prompts
from specbranch.session import Settings

EPSILONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)
GAMMAS = (1, 2, 3, 4, 6, 8, 11, 15)
CLEARLY = 0.03
ROLLOUT = 31  # replays are exact up to half of it
# Policies that hedge: policy, draft stage, whether H-RAD is asked.
WAYS = (
    *[("specbranch", stage, hrad) for stage in ("overlap", "serial") for hrad in (False, True)],
    *[("fanout", stage, False) for stage in ("overlap", "serial")],
)
COUNTERS = ("M", "tokens_per_round", "RB", "acceptance_rate", "branch_hit_rate", "bubble")
Row = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """A pair on one kind of prompt at one temperature."""

    pair: str
    prompts: str
    temperature: float


class Ablation:
    """One run of the script.

    Args:
        args: see ``_parser``.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.target, draft, self.tokenizer = demo_pair()
        self.drafts: dict[str, CausalLM] = {"aligned": draft, "worse": noisy_draft(args.sigma)}
        self.hardware = Hardware(Costs.of_ratio(args.speed_ratio))
        self.base = Settings(gamma=args.gamma, k_max=args.k_max, epsilon=args.epsilon)

    def run(self) -> dict[str, Any]:
        """All studies of all pairs."""
        found: dict[str, Any] = {"acceptance": [], "hrad": [], "rows": [], "measured": []}
        for pair in self.drafts:
            predictors, found_scores = self._train(pair)
            found["hrad"] += found_scores
            for scene in self._scenes(pair):
                _log(f"{scene}")
                traces = self._record(scene, predictors[self.args.layers])
                rate = round(traces.acceptance_rate, 4)
                found["acceptance"].append(vars(scene) | {"acceptance_rate": rate})
                found["rows"] += [vars(scene) | row for row in self._studies(traces)]
                found["rows"] += [vars(scene) | row for row in self._layers(scene, predictors)]
            if self.args.measure:
                found["measured"] += self._measure(pair, predictors[self.args.layers])
        return found

    def _scenes(self, pair: str) -> Iterator[Scene]:
        for prompts in self.args.prompts:
            for temperature in self.args.temperatures:
                yield Scene(pair, prompts, temperature)

    # ------------------------------------------------------------------ H-RAD
    def _train(self, pair: str) -> tuple[dict[int, HRad], list[Row]]:
        """A predictor for each K, from one collection of examples, and what each is worth."""
        draft, most = self.drafts[pair], max(self.args.all_layers)
        settings = TrainSettings(gamma=self.args.gamma, layers=most, n=self.args.train_prompts)
        prompts = [self.tokenizer.encode(text) for text in read_prompts("stdlib", settings.n)]
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            lanes = SerialLanes()
            examples = Collection(self.target, draft, prompts, settings, work, lanes).run()
            predictors, rows = {}, []
            for layers in self.args.all_layers:
                own = replace(settings, layers=layers)
                parts = [_last(part, layers) for part in split(examples, len(prompts), settings)]
                fit = Fit(parts[0], embedding_of(self.target), own, work / f"fit-{layers}.pt")
                predictors[layers] = HRad(self._config(own), fit.run(), self.target)
                scores = as_object(evaluate(predictors[layers], self.target, *parts))
                rows.append({"pair": pair, "layers": layers, "held_out": scores})
        return predictors, rows

    def _config(self, settings: TrainSettings) -> HRadConfig:
        width = embedding_of(self.target).shape[1]
        return HRadConfig(settings.layers, width, self.target.vocab_size, settings.gamma)

    # ------------------------------------------------------------------ traces and replay
    def _record(self, scene: Scene, predictor: HRad) -> Traces:
        texts = read_prompts(scene.prompts, self.args.n)
        params = SamplingParams(
            max_new_tokens=self.args.max_new_tokens, temperature=scene.temperature
        )
        prompts = [self.tokenizer.encode(text) for text in texts]
        draft = self.drafts[scene.pair]
        return record_traces(
            self.target, draft, prompts, params, rollout=ROLLOUT, predictor=predictor
        )

    def _studies(self, traces: Traces) -> Iterator[Row]:
        simulator = Simulator(traces, self.hardware)

        def row(study: str, policy: str, settings: Settings, hrad: bool = False) -> Row:
            return _row(simulator, study, policy, settings, hrad)

        for policy in ("sps", "pearl", "adaedl", "ngram"):
            yield row("methods", policy, self.base)
            yield _best(row("best", policy, each) for each in self._grid(policy))
        for policy, stage, hrad in WAYS:
            base = replace(self.base, draft_stage=stage)
            yield row("methods", policy, base, hrad)
            grid = self._grid(policy)
            rows = [row("best", policy, replace(one, draft_stage=stage), hrad) for one in grid]
            yield _best(rows)
            yield from (one | {"study": "frontier"} for one in _frontier(rows))
            for epsilon in EPSILONS:
                yield row("epsilon", policy, replace(base, epsilon=epsilon), hrad)
            for k_max in WIDTHS:
                yield row("k_max", policy, replace(base, k_max=k_max), hrad)

    def _grid(self, policy: str) -> Iterator[Settings]:
        """What a policy's best setting is looked for among."""
        hedges = policy in ("specbranch", "fanout")
        epsilons = (0.0, *EPSILONS) if hedges or policy == "adaedl" else (self.base.epsilon,)
        for gamma, epsilon in product(GAMMAS, epsilons):
            yield replace(self.base, gamma=gamma, epsilon=epsilon)

    def _layers(self, scene: Scene, predictors: dict[int, HRad]) -> Iterator[Row]:
        """Each K, at a threshold that is as good as any and at one that is not."""
        for layers, predictor in predictors.items():
            simulator = Simulator(self._record(scene, predictor), self.hardware)
            for epsilon in (0.2, 0.8):
                settings = replace(self.base, epsilon=epsilon)
                yield _row(simulator, "layers", "specbranch", settings, True) | {"layers": layers}

    # ------------------------------------------------------------------ the clock
    def _measure(self, pair: str, predictor: HRad) -> Iterator[Row]:
        """The main methods as they run here, interleaved, on the first kind of prompt."""
        prompts = self.args.prompts[0]
        texts = read_prompts(prompts, self.args.measure)
        own = {key: getattr(self.base, key) for key in ("gamma", "k_max", "epsilon")}
        serial = [f"{policy}:draft_stage=serial" for policy in ("specbranch", "fanout")]
        for temperature in self.args.temperatures:
            params = SamplingParams(
                max_new_tokens=self.args.max_new_tokens, temperature=temperature
            )
            found = compare(
                self.target, self.drafts[pair], texts,
                ["ar", "sps", "pearl", "adaedl", "fanout", "specbranch", *serial],
                params, settings=own, tokenizer=self.tokenizer, predictor=predictor,
                repeat=self.args.repeat, step=_log,
            )  # fmt: skip
            if found.wrong:
                raise SystemExit(f"NOT LOSSLESS: {found.wrong[0]}")
            scene = vars(Scene(pair, prompts, temperature))
            for method in found.methods:
                ratios = sorted(found.speedups(method).values())
                yield scene | {"method": method.name, "speedups": ratios}


def _last(examples: Examples, layers: int) -> Examples:
    """The examples of a predictor that reads the last ``layers`` layers."""
    return replace(examples, hidden=examples.hidden[:, -layers:].contiguous())


def _row(
    simulator: Simulator, study: str, policy: str, settings: Settings, hrad: bool = False
) -> Row:
    found = simulator.run(policy, settings, hrad=hrad)
    stats = found.stats.to_dict()
    return {
        "study": study,
        "policy": policy,
        "hrad": hrad,
        "gamma": settings.gamma,
        "k_max": settings.k_max,
        "epsilon": settings.epsilon,
        "draft_stage": settings.draft_stage,
        "speedup": round(found.speedup, 4),
    } | {name: round(stats[name], 4) for name in COUNTERS}


def _best(rows: Iterable[Row]) -> Row:
    return max(rows, key=lambda row: row["speedup"])


def _frontier(rows: Iterable[Row]) -> Iterator[Row]:
    """From the fastest setting down: those that roll back clearly less than every faster one."""
    least = float("inf")
    for row in sorted(rows, key=lambda row: -row["speedup"]):
        if row["RB"] < least - CLEARLY:
            least = row["RB"]
            yield row


def main() -> int:
    """Run what the command line asks for and write the result file."""
    args = _parser().parse_args()
    result = machine.record("ablation", "cpu") | {
        "settings": {key: val for key, val in vars(args).items() if key != "out"}
    }
    result |= Ablation(args).run()
    args.out.write_text(as_text(result), encoding="utf-8")
    return 0


def as_text(result: dict[str, Any]) -> str:
    """JSON, one row a line."""
    fields = []
    for key, value in result.items():
        is_table = isinstance(value, list) and value and isinstance(value[0], dict)
        rows = ",\n  ".join(map(json.dumps, value)) if is_table else ""
        fields.append(f' "{key}": ' + (f"[\n  {rows}\n ]" if is_table else json.dumps(value)))
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="F", help="result file (JSON)")
    add("--prompts", nargs="+", default=["humaneval", "bench/prose.txt"])
    add("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    add("--n", type=int, default=20, help="prompts of each kind")
    add("--max-new-tokens", type=int, default=128)
    add("--speed-ratio", type=float, default=15.0, help="c: a target forward in draft forwards")
    add("--sigma", type=float, default=SIGMA, help="noise of the worse draft")
    add("--gamma", type=int, default=6, help="draft length where it is not what varies")
    add("--k-max", type=int, default=8)
    add("--epsilon", type=float, default=0.2)
    add("--layers", type=int, default=4, help="K where it is not what varies")
    add("--all-layers", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6, 7, 8])
    add("--train-prompts", type=int, default=200, help="for H-RAD, from the standard library")
    add("--measure", type=int, default=0, metavar="N", help="prompts to run for real, by the clock")
    add("--repeat", type=int, default=1, help="real runs of each method on each prompt")
    return parser


if __name__ == "__main__":
    sys.exit(main())
