"""Batches: tokens per second of several requests side by side, against one after the other.

    python bench/batch.py --out bench/results/NAME.json
    python bench/batch.py --inflate 1b 68m --dtype bfloat16 --n 8 --max-new-tokens 32 ...

Every policy takes the same prompts with every batch size, and one by one, in an order that rotates
from repeat to repeat, so that a machine that slows down slows all of them. Each request's tokens
must be those it has alone; if not, the exit code is 1.

Prompts are read one by one whatever the batch, so the tables give the rate of decoding by itself,
too: the wall time less the time in which prompts were read. Two yardsticks: the same policy one
request at a time, and ``ar`` one request at a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import machine
from pair import add_flags, inflated_sizes, weights_of

from specbranch import Engine, GenerationResult, SamplingParams, load_tokenizer
from specbranch.lanes import num_cores
from specbranch.prompts import read_prompts
from specbranch.sampling_params import check_int

ALONE = 0  # the batch size that stands for: one after the other, no batch at all

Prompts = list[list[int]]
Row = dict[str, Any]


def main() -> int:
    """Run what the command line asks for, print the tables and write the result file."""
    parser = _parser()
    args = parser.parse_args()
    try:
        weights = weights_of(args)
        texts = read_prompts(args.prompts, args.n)
        for size in args.sizes:
            check_int("--sizes", size, 1)
        target, draft = (each.ours() for each in weights)
        engines = {
            policy: Engine(target, draft, policy=policy, threads=args.threads, verify=args.verify)
            for policy in args.policies
        }
    except (OSError, ValueError) as error:
        parser.error(str(error))
    tokenizer = load_tokenizer(weights[0].folder)
    prompts = [tokenizer.encode(text)[: args.prompt_tokens] for text in texts]
    rows, wrong = _measure(engines, prompts, args)
    result = machine.record("batch", "cpu") | {
        "cores": num_cores(),
        "settings": _settings(args),
        "inflated": inflated_sizes(weights),
        "prompt_tokens": [len(prompt) for prompt in prompts],
        "differs_from_alone": wrong,
        "rows": rows,
    }
    sys.stdout.write(table(result))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name in wrong:
        _log(f"NOT THE OUTPUT IT HAS ALONE: {name}")
    return 1 if wrong else 0


def _measure(
    engines: dict[str, Engine], prompts: Prompts, args: argparse.Namespace
) -> tuple[list[Row], list[str]]:
    """A row for each policy and size, of several repeats the median; and what came out wrong."""
    cases = [(policy, size) for policy in engines for size in (ALONE, *args.sizes)]
    warm_up = SamplingParams(max_new_tokens=2)
    for engine in engines.values():  # first calls allocate
        engine.generate([prompt[:8] for prompt in prompts[:2]], warm_up)
    taken: dict[tuple[str, int], list[Row]] = {case: [] for case in cases}
    tokens: dict[tuple[str, int], list[list[int]]] = {}
    wrong = []
    for repeat in range(args.repeats):
        first = repeat * len(cases) // args.repeats
        for case in cases[first:] + cases[:first]:
            results, row = _run(engines[case[0]], case[1], prompts, args)
            found = [result.tokens for result in results]
            if tokens.setdefault(case, found) != found:
                wrong.append(f"{case[0]}, batch {case[1]}: another run of it")
            taken[case].append(row)
            _log(f"{case[0]:12s} batch {case[1]} {row['decode_tokens_per_second']:8.1f} tokens/s")
    wrong += [
        f"{policy}, batch {size}"
        for policy, size in cases
        if tokens[policy, size] != tokens[policy, ALONE]
    ]
    return [
        {"policy": policy, "batch": size} | _median(taken[policy, size]) for policy, size in cases
    ], wrong


def _run(
    engine: Engine, size: int, prompts: Prompts, args: argparse.Namespace
) -> tuple[list[GenerationResult], Row]:
    """All prompts once, with seeds of their own."""
    params = [
        SamplingParams(
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            seed=idx,
            ignore_eos=True,
        )
        for idx in range(len(prompts))
    ]
    started = time.perf_counter()
    if size == ALONE:
        results = [engine.generate(*each) for each in zip(prompts, params, strict=True)]
    else:
        results = engine.generate(prompts, params, max_batch=size)
    seconds = time.perf_counter() - started
    count = sum(len(result.tokens) for result in results)
    reading = sum(result.stats.prefill_seconds for result in results)
    row = {
        "seconds": seconds,
        "prefill_seconds": reading,
        "tokens_per_second": count / seconds,
        "decode_tokens_per_second": count / (seconds - reading),
    }
    report = engine.last_batch if size != ALONE else None
    if report is not None:
        names = ("target_forwards", "target_rows", "draft_forwards", "draft_rows")
        row |= {name: getattr(report, name) for name in names}
    return results, row


def _median(rows: list[Row]) -> Row:
    """The repeat of median speed, and all speeds."""
    ordered = sorted(rows, key=lambda row: row["seconds"] - row["prefill_seconds"])
    row = ordered[len(ordered) // 2]
    rates = [round(each["decode_tokens_per_second"], 3) for each in rows]
    return {key: round(value, 6) for key, value in row.items()} | {"repeats": rates}


def table(result: dict[str, Any]) -> str:
    """Markdown: tokens per second of decoding by policy and batch, and over the yardsticks."""
    rows = result["rows"]
    rate = {(row["policy"], row["batch"]): row["decode_tokens_per_second"] for row in rows}
    ar = rate.get(("ar", ALONE))
    lines = [
        "| policy | batch | tokens/s | x alone | x `ar` alone | with prompts | rows a forward |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        policy, size = row["policy"], row["batch"]
        own = rate[policy, size]
        cells = [
            f"`{policy}`",
            str(size) if size != ALONE else "one by one",
            f"{own:.1f}",
            f"{own / rate[policy, ALONE]:.2f}",
            f"{own / ar:.2f}" if ar is not None else "",
            f"{row['tokens_per_second']:.1f}",
            f"{row['target_rows']:.2f}" if "target_rows" in row else "1",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    spread = statistics.median(max(row["repeats"]) / min(row["repeats"]) for row in rows)
    return "\n".join([*lines, "", f"Fastest over slowest repeat: {spread:.2f} (median)."]) + "\n"


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {key: val for key, val in vars(args).items() if key not in ("out", "target", "draft")}


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, metavar="F", help="result file (JSON)")
    add_flags(parser)
    add("--policies", nargs="+", default=["ar", "sps", "specbranch"])
    add("--sizes", type=int, nargs="+", default=[1, 2, 4, 8], help="of the batch")
    add("--prompts", default="humaneval", help="humaneval, stdlib, or a file")
    add("--n", type=int, default=8, help="how many prompts")
    add("--prompt-tokens", type=int, metavar="N", help="most tokens of a prompt that are used")
    add("--max-new-tokens", type=int, default=64)
    add("--temperature", type=float, default=0.0)
    add("--verify", choices=("rejection", "coupled"))
    add("--repeats", type=int, default=3, help="the median counts")
    add("--threads", type=int, default=num_cores(), help="CPU cores")
    parser.set_defaults(device="cpu")
    return parser


if __name__ == "__main__":
    sys.exit(main())
