"""Whole requests, side by side: our policies and transformers on the same weights.

    python bench/e2e.py --prompts humaneval --n 20 --temperatures 0 0.7 \
        --policies ar sps specbranch --peers hf hf-assisted --out bench/results/NAME.json

Methods are interleaved prompt by prompt, in an order that rotates, so that a machine that slows
down slows all of them. Greedy output of our policies must equal ``ar``'s; if not, the exit code
is 1 and the result says where. ``bench/report.py`` makes the tables.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shlex
import subprocess
import sys
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from methods import Method, Run, our_methods, peer_methods

from specbranch import SamplingParams, load_tokenizer
from specbranch.lanes import num_cores
from specbranch.pair import DEMO_DIR
from specbranch.prompts import humaneval

BASELINE = "ar"


def main() -> int:
    """Run what the command line asks for and write the result file."""
    args = _parser().parse_args()
    target_dir, draft_dir = args.target or DEMO_DIR / "target", args.draft or DEMO_DIR / "draft"
    methods = our_methods(args, target_dir, draft_dir) + peer_methods(args, target_dir, draft_dir)
    tokenizer = load_tokenizer(target_dir)
    prompts = [tokenizer.encode(text) for text in _texts(args)]
    for method in methods:  # first calls allocate and compile
        method(prompts[0], SamplingParams(max_new_tokens=8))
    runs = [
        run
        for temperature in args.temperatures
        for idx, prompt in enumerate(prompts)
        for run in _one_prompt(methods, temperature, idx, prompt, args)
    ]
    differences = _differences(runs)
    result = _record(args, prompts) | {"differs_from_ar": differences, "runs": _trim(runs)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _log(f"wrote {args.out}; tables: python bench/report.py --print {args.out}")
    wrong = [found for found in differences if found["is_ours"]]
    for found in wrong:
        _log(f"NOT LOSSLESS: {found}")
    return 1 if wrong else 0


def _one_prompt(
    methods: list[Method], temperature: float, idx: int, prompt: list[int], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Every method on one prompt; of several repeats the median counts."""
    params = SamplingParams(
        max_new_tokens=args.max_new_tokens, temperature=temperature, seed=args.seed + idx
    )
    taken: dict[str, list[Run]] = defaultdict(list)
    for repeat in range(args.repeats):
        first = (idx + repeat) % len(methods)
        for method in methods[first:] + methods[:first]:
            taken[method.name].append(method(prompt, params))
    rows = []
    for method in methods:
        ordered = sorted(taken[method.name], key=lambda run: run.seconds)
        run = ordered[len(ordered) // 2]
        rate = len(run.tokens) / run.seconds
        _log(f"T={temperature:g} prompt {idx:2d} {method.name:32s} {rate:8.1f} tokens/s")
        rows.append(
            {
                "temperature": temperature,
                "prompt": idx,
                "method": method.name,
                "is_ours": method.is_ours,
                "new_tokens": len(run.tokens),
                "seconds": run.seconds,
                "tokens": run.tokens,
                "counters": run.counters,
            }
        )
    return rows


def _differences(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Greedy runs whose tokens are not ``ar``'s, with the first position that differs."""
    greedy = [run for run in runs if run["temperature"] == 0]
    expected = {run["prompt"]: run["tokens"] for run in greedy if run["method"] == BASELINE}
    found = []
    for run in greedy:
        tokens, wanted = run["tokens"], expected.get(run["prompt"], run["tokens"])
        if tokens != wanted:
            same = [a == b for a, b in zip(tokens, wanted, strict=False)]
            position = same.index(False) if False in same else len(same)
            keys = ("method", "is_ours", "prompt")
            found.append({key: run[key] for key in keys} | {"position": position})
    return found


def _trim(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tokens were for the comparison; rounded counters keep the file readable."""
    trimmed = []
    for run in runs:
        counters = {name: round(value, 6) for name, value in run["counters"].items()}
        rest = {key: run[key] for key in ("temperature", "prompt", "method", "new_tokens")}
        trimmed.append(rest | {"seconds": round(run["seconds"], 6), "counters": counters})
    return trimmed


def _record(args: argparse.Namespace, prompts: list[list[int]]) -> dict[str, Any]:
    """What a reader must know to judge or repeat the figures."""
    given = {key: val for key, val in vars(args).items() if key not in ("out", "target", "draft")}
    return {
        "kind": "e2e",
        "command": shlex.join(["python", "bench/e2e.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "specbranch", "csrc")),
        "device": {"cpu": _cpu_model(), "cores": num_cores(), "system": platform.platform()},
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("specbranch", "torch", "transformers", "numpy")},
        "settings": given,
        "prompt_tokens": [len(prompt) for prompt in prompts],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*args: str) -> str | None:
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _texts(args: argparse.Namespace) -> list[str]:
    if args.prompts == "humaneval":
        return humaneval(args.n)
    return Path(args.prompts).read_text(encoding="utf-8").splitlines()[: args.n]


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="F", help="result file (JSON)")
    add("--prompts", default="humaneval", help="humaneval, or a file with one prompt a line")
    add("--n", type=int, default=20, help="how many prompts")
    add("--max-new-tokens", type=int, default=128)
    add("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    add("--policies", nargs="*", default=["ar", "sps", "specbranch"])
    add("--peers", nargs="*", default=[], choices=("hf", "hf-assisted"))
    add("--gamma", type=int, nargs="+", default=[], help="several: one method for each")
    add("--k-max", type=int, nargs="+", default=[])
    add("--epsilon", type=float, nargs="+", default=[])
    add("--draft-stage", nargs="+", default=[], choices=("serial", "overlap"))
    add("--verify", nargs="+", default=[], choices=("rejection", "coupled"))
    add("--repeats", type=int, default=1, help="runs of a method on a prompt; the median counts")
    add("--seed", type=int, default=0, help="of the first prompt; the next ones count up")
    add("--threads", type=int, default=num_cores(), help="CPU cores for every method")
    add("--peer-threads", type=int, nargs="+", default=[], help="other counts for the peers")
    add("--target", type=Path, metavar="DIR", help="default: the demo pair")
    add("--draft", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
