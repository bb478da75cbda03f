"""What H-RAD changes in a round: the policy with and without it, counted, not timed.

    python bench/hrad.py --prompts humaneval --n 20 --gamma 4 --epsilon 0.2 0.5 0.8 \\
        --out bench/results/hrad.json

Counts do not depend on the machine. Greedy output must equal ``ar``'s; if not, the exit code is 1.
``all`` keeps every drafted token, as a predictor that always says so would; its ``decisions`` are
H-RAD's guesses, [true class][guessed class], at the very points where a round asks.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from specbranch import Engine, HRad, SamplingParams, demo_pair, demo_predictor
from specbranch.hrad.collect import label_of
from specbranch.hrad.evaluate import as_object, score
from specbranch.lanes import SerialLanes
from specbranch.predictor import Keep, Predictor
from specbranch.prompts import read_prompts

COUNTERS = (
    "rounds", "target_forwards", "draft_forwards", "committed", "drafted", "accepted",
    "accepted_chain", "rejections", "rolled_back", "pruned", "branch_points", "branch_hits",
)  # fmt: skip


class Overruled:
    """Keeps all, and notes what H-RAD would have said: its guesses where a round asks for them."""

    def __init__(self, inner: HRad) -> None:
        self.inner, self.hidden_layers = inner, inner.hidden_layers
        self.asked: list[Keep] = []
        self.guesses: list[Keep] = []
        self.labels: list[Keep] = []

    def predict(self, hidden: torch.Tensor, next_token: int) -> Keep:
        """All."""
        self.asked.append(self.inner.predict(hidden, next_token))
        return Keep.ALL

    def judge(self, origins: list[str], gamma: int) -> None:
        """Every surviving branch was followed by a chain of gamma tokens: how many were accepted?

        Those too near to the end of the request for a whole chain are left out.
        """
        asked, self.asked = self.asked, []
        branches = [idx for idx, origin in enumerate(origins) if origin == "branch"]
        for guess, idx in zip(asked, branches, strict=False):
            behind = origins[idx + 1 : idx + 2 + gamma]
            if len(behind) > gamma:
                count = next(n for n, origin in enumerate([*behind, ""]) if origin != "chain")
                self.guesses.append(guess)
                self.labels.append(label_of(min(count, gamma), gamma))

    def figures(self) -> dict[str, Any]:
        """H-RAD's score, and forget."""
        found = score(torch.tensor(self.labels), torch.tensor(self.guesses))
        self.guesses, self.labels = [], []
        return as_object({"decisions": found})


class Counting:
    """A predictor that counts what another one says."""

    def __init__(self, inner: HRad) -> None:
        self.inner, self.hidden_layers, self.said = inner, inner.hidden_layers, Counter()

    def predict(self, hidden: torch.Tensor, next_token: int) -> Keep:
        """Ask and count."""
        keep = self.inner.predict(hidden, next_token)
        self.said[keep] += 1
        return keep


def main() -> int:
    """Run what the command line asks for and write the result file."""
    args = _parser().parse_args()
    target, draft, tokenizer = demo_pair()
    hrad = demo_predictor(target) if args.hrad is None else HRad.load(args.hrad, target)
    prompts = [tokenizer.encode(text) for text in read_prompts(args.prompts, args.n)]
    lanes, rows, equal = SerialLanes(1), [], True
    plain = Engine(target, policy="ar", lanes=lanes)
    for temperature in args.temperatures:
        expected = _outputs(plain, prompts, temperature, args)[0] if temperature == 0 else None
        for epsilon in args.epsilon:
            for name, predictor in _predictors(hrad).items():
                engine = Engine(
                    target, draft, gamma=args.gamma, epsilon=epsilon, predictor=predictor,
                    draft_stage=args.draft_stage, lanes=lanes,
                )  # fmt: skip
                outputs, total = _outputs(engine, prompts, temperature, args)
                equal &= expected is None or outputs == expected
                row = {"temperature": temperature, "epsilon": epsilon, "predictor": name}
                rows.append(row | _figures(total, predictor))
                sys.stderr.write(f"{rows[-1]}\n")
    command = shlex.join(["python", "bench/hrad.py", *sys.argv[1:]])
    result = {"kind": "hrad", "command": command, "greedy_equals_ar": equal, "rows": rows}
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if equal else 1


def _predictors(hrad: HRad) -> dict[str, Predictor | None]:
    return {"none": None, "hrad": Counting(hrad), "all": Overruled(hrad)}


def _outputs(
    engine: Engine, prompts: list[list[int]], temperature: float, args: argparse.Namespace
) -> tuple[list[list[int]], Counter[str]]:
    """Tokens of each prompt, and the counters of all."""
    outputs, total = [], Counter()
    for idx, prompt in enumerate(prompts):
        params = SamplingParams(
            max_new_tokens=args.max_new_tokens, temperature=temperature, seed=args.seed + idx
        )
        result = engine.generate(prompt, params)
        outputs.append(result.tokens)
        if isinstance(engine.predictor, Overruled):
            engine.predictor.judge(result.origins, engine.settings.gamma)
        total.update({name: getattr(result.stats, name) for name in COUNTERS})
    return outputs, total


def _figures(total: Counter[str], predictor: Predictor | None) -> dict[str, Any]:
    """Metrics over all prompts, from the sums."""
    found = {
        "tokens_per_target_forward": round(total["committed"] / total["target_forwards"], 4),
        "RB": round(total["rolled_back"] / total["drafted"], 4),
        "draft_forwards_per_token": round(total["draft_forwards"] / total["committed"], 4),
        "counters": dict(total),
    }
    if isinstance(predictor, Counting):
        found["said"] = {keep.name: predictor.said[keep] for keep in Keep}
        predictor.said.clear()
    if isinstance(predictor, Overruled):
        found |= predictor.figures()
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="F", help="result file (JSON)")
    add("--hrad", type=Path, metavar="F", help="default: the one that is shipped")
    add("--prompts", default="humaneval", help="humaneval, stdlib, or a file")
    add("--n", type=int, default=20, help="how many prompts")
    add("--max-new-tokens", type=int, default=128)
    add("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    add("--gamma", type=int, default=4)
    add("--epsilon", type=float, nargs="+", default=[0.2, 0.5, 0.8])
    add("--draft-stage", default="overlap", choices=("serial", "overlap"))
    add("--seed", type=int, default=0, help="of the first prompt; the next ones count up")
    return parser


if __name__ == "__main__":
    sys.exit(main())
