"""How far ``policy="auto"`` is behind the best fixed choice, and behind ``ar``.

    python bench/auto.py --temperatures 0 0.7 --out bench/results/auto.json
    python bench/auto.py --sigma 0.25 --out bench/results/auto-worse.json
    python bench/auto.py --gguf MODEL.gguf --n 60 --autos 1 --fixed sps:gamma=4 sps:gamma=8 --out F

Several engines with that policy, each of which knows nothing at first, take turns with the fixed
choices, prompt by prompt, each time in another order, and go through the prompts several times.
Learning is included. ``ar`` takes part twice (but for ``--no-control``): how far these two are
apart is what the clock cannot tell. Of a GGUF file or a checkpoint directory the draft is its int8
copy; ``--sigma`` puts noise in the demo pair's (bench/worse_draft.py), so that drafting may not pay
at all. Tokens must be ``ar``'s, else the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import report_auto
import worse_draft

from specbranch import SamplingParams, demo_pair, load_model, load_tokenizer
from specbranch.comparison.measure import Contestant
from specbranch.comparison.methods import parse_method
from specbranch.comparison.record import load_average
from specbranch.comparison.run import interleaved, warm_up
from specbranch.lanes import num_cores
from specbranch.prompts import read_prompts

FIXED = ("sps:gamma=1", "sps:gamma=2", "sps:gamma=3", "sps:gamma=4", "sps:gamma=6",
         "specbranch:gamma=3", "specbranch:gamma=4,draft_stage=serial")  # fmt: skip


def main() -> int:
    """Run what the command line asks for."""
    args = _parser().parse_args()
    target, draft, tokenizer = models_of(args.gguf, args.sigma)
    once = [tokenizer.encode(text) for text in read_prompts(args.prompts, args.n)]
    prompts = once * args.passes
    found = []
    for temperature in args.temperatures:
        params = SamplingParams(max_new_tokens=args.max_new_tokens, temperature=temperature)
        contestants = list(
            contestants_of(target, draft, args.fixed, args.autos, control=args.control)
        )
        about = {"temperature": temperature, "passes": args.passes}
        found.append(about | _measured(contestants, prompts, params))
        sys.stdout.write(report_auto.table(found[-1]) + "\n")
    settings = {key: val for key, val in vars(args).items() if key not in ("out", "gguf")}
    settings["prompts"] = Path(args.prompts).name
    about = machine.record("auto", "cpu") | {"settings": settings, "cores": num_cores()}
    about["load_average"] = load_average()
    about["draft"] = _described(args.gguf, args.sigma)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(about | {"runs": found}, indent=1) + "\n")
    return int(any(run["different"] for run in found))


def models_of(path: Path | None, sigma: float) -> tuple[Any, Any, Any]:
    """Target, draft and tokenizer: of a file, else the demo pair, with noise in the draft."""
    if path is None:
        target, draft, tokenizer = demo_pair()
        return target, worse_draft.noisy_draft(sigma) if sigma else draft, tokenizer
    models = (load_model(path, dtype="float32", weights=weights) for weights in ("exact", "int8"))
    return (*models, load_tokenizer(path))


def _described(path: Path | None, sigma: float) -> str:
    if path is not None:
        return f"{path.stem} and its int8 copy"
    return f"demo pair, noise of {sigma:g} sigma in the draft" if sigma else "demo pair"


def contestants_of(
    target: Any, draft: Any, fixed: Sequence[str], autos: int, *, control: bool
) -> Iterator[Contestant]:
    """``ar`` first; all verify as ``auto`` does, so that all tokens are the same."""
    plain = [("ar", "ar"), *[(report_auto.CONTROL, "ar")] * control]
    for name, text in (*plain, *zip(fixed, fixed, strict=True)):
        method = parse_method(text)
        coupled = replace(method, name=name, settings={**method.settings, "verify": "coupled"})
        yield Contestant(coupled, target, draft, None, None)
    for idx in range(autos):
        named = replace(parse_method("auto"), name=f"auto {idx + 1}")
        yield Contestant(named, target, draft, None, None)


def _measured(
    contestants: Sequence[Contestant], prompts: Sequence[list[int]], params: SamplingParams
) -> dict[str, Any]:
    """Tokens a second over all prompts, by method, and the seconds of each prompt."""
    for each in contestants:
        if each.method.policy != "auto":
            warm_up(each, prompts[0], params)
    seconds: dict[str, list[float]] = {each.method.name: [] for each in contestants}
    tokens: dict[str, list[list[int]]] = {name: [] for name in seconds}
    for run in interleaved(contestants, prompts, params, 1, lambda name: None):
        seconds[run.method].append(run.seconds)
        tokens[run.method].append(run.tokens)
    num_tokens = sum(len(each) for each in tokens["ar"])
    return {
        "tokens": num_tokens,
        "different": [name for name, made in tokens.items() if made != tokens["ar"]],
        "tokens_per_second": {
            name: round(num_tokens / sum(each), 2) for name, each in seconds.items()
        },
        "seconds": {name: [round(s, 6) for s in each] for name, each in seconds.items()},
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="F", help="result file (JSON)")
    models = parser.add_mutually_exclusive_group()
    models.add_argument(
        "--gguf", type=Path, metavar="PATH", help="GGUF file or checkpoint directory"
    )
    models.add_argument("--sigma", type=float, default=0.0, help="noise in the demo pair's draft")
    add("--fixed", nargs="+", default=FIXED, help="policy:setting=value,... beside ar")
    add("--autos", type=int, default=4, help="engines with policy auto")
    add("--no-control", dest="control", action="store_false", help="ar once only, to save time")
    add("--temperatures", type=float, nargs="+", default=[0.0])
    add("--prompts", default="humaneval", help="humaneval, or a file of prompts")
    add("--n", type=int, default=164, help="how many prompts")
    add("--passes", type=int, default=3, help="how often they are gone through")
    add("--max-new-tokens", type=int, default=128)
    return parser


if __name__ == "__main__":
    sys.exit(main())
