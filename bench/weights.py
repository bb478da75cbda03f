"""float32, bfloat16 and int8 weights on a CPU: what a forward costs, and the int8 copy as a draft.

    python bench/weights.py --out bench/results/weights.json

The same model three times: numbers that only float32 holds, numbers that bfloat16 holds exactly
(as checkpoints have them), and those rounded to int8. All three take turns; figures are medians
of whole forwards of m tokens behind a prefix, and ratios. The sizes are the demo target's,
SmolLM2-135M's (random numbers) and TinyLlama-1.1B's (the demo target, inflated). Then the demo
target with several drafts, its own int8 copy among them: acceptance and tokens a second; an output
that is not the target's own ends the run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import machine
import torch
from inflate import Inflation
from safetensors.torch import load_file
from shapes import Shape, named_shape, tensor_shapes

from specbranch import Engine, SamplingParams, demo_pair, load_model, ops
from specbranch.comparison.record import load_average
from specbranch.lanes import num_cores
from specbranch.models import LlamaModel, load_config, model_from_tensors
from specbranch.models.config import LlamaConfig
from specbranch.pair import DEMO_DIR
from specbranch.prompts import read_prompts

TARGET = DEMO_DIR / "target"
KINDS = ("float32", "bfloat16", "int8")
NAMES = {"demo": "demo target", "135m": "SmolLM2-135M", "1b": "TinyLlama-1.1B"}  # for tables
SMOLLM2 = Shape(576, 30, 9, 3, 64, 1536, 49152)  # HuggingFaceTB/SmolLM2-135M
Row = dict[str, Any]


class Scaled(Mapping[str, torch.Tensor]):
    """Float32 tensors that bfloat16 does not hold, made of some that it may."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name].float() * (1 + 2**-12)


class Random(Mapping[str, torch.Tensor]):
    """Random bfloat16 tensors of a shape, each made when it is asked for; norms are ones."""

    def __init__(self, shape: Shape) -> None:
        self._shapes = dict(tensor_shapes(shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, name: str) -> torch.Tensor:
        sizes = self._shapes[name]
        if len(sizes) == 1:
            return torch.ones(sizes)
        return (torch.randn(sizes) * 0.02).bfloat16()


def demo() -> tuple[LlamaConfig, Mapping[str, torch.Tensor]]:
    """The demo target."""
    return load_config(TARGET), load_file(TARGET / "model.safetensors")


def smollm2() -> tuple[LlamaConfig, Mapping[str, torch.Tensor]]:
    """Sizes of SmolLM2-135M."""
    config = dataclasses.replace(load_config(TARGET), **SMOLLM2.in_config(), tied=False)
    return config, Random(SMOLLM2)


def inflated() -> tuple[LlamaConfig, Mapping[str, torch.Tensor]]:
    """The demo target in matrices of a Llama of 1.1 billion."""
    inflation = Inflation(TARGET, named_shape("1b"), dtype=torch.bfloat16)
    return inflation.config, inflation


MODELS: dict[str, Callable[[], tuple[LlamaConfig, Mapping[str, torch.Tensor]]]] = {
    "demo": demo,
    "135m": smollm2,
    "1b": inflated,
}


def three(name: str) -> dict[str, LlamaModel]:
    """The model with each kind of weights, float32 activations."""
    config, tensors = MODELS[name]()
    given: dict[str, Mapping[str, torch.Tensor]] = {"float32": Scaled(tensors)}
    return {
        kind: model_from_tensors(
            config,
            given.get(kind, tensors),
            dtype="float32",
            weights="int8" if kind == "int8" else "exact",
        )
        for kind in KINDS
    }


def matrix_bytes(model: LlamaModel) -> int:
    """What a forward reads of the weights."""
    linears = [model.head]
    for layer in model.layers:
        linears += [layer.qkv, layer.out, layer.gate_up, layer.down]
    return sum(linear.weight.nbytes for linear in linears)


# ---------------------------------------------------------------------------- forwards
def forwards(name: str, args: argparse.Namespace) -> list[Row]:
    """A row for each number of tokens."""
    models = three(name)
    states = {}
    for kind, model in models.items():
        states[kind] = model.new_state(args.prefix + max(args.rows), max(args.rows))
        states[kind].prefill(torch.arange(args.prefix) % 1000)
    rows = []
    for count in args.rows:
        taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for idx in range(args.repeats[name] + 1):
            for kind, state in states.items():
                once = _milliseconds(state, torch.arange(count), args.prefix)
                if idx:  # the first one makes buffers
                    taken[kind].append(once)
        times = {kind: statistics.median(each) for kind, each in taken.items()}
        spread = {kind: statistics.quantiles(each, n=4) for kind, each in taken.items()}
        size = {kind: matrix_bytes(model) for kind, model in models.items()}
        rows.append(
            {"model": name, "tokens": count, "repeats": args.repeats[name]}
            | {"milliseconds": times, "quartiles": {k: [v[0], v[2]] for k, v in spread.items()}}
            | {"faster_than_float32": {k: times["float32"] / v for k, v in times.items()}}
            | {"faster_than_bfloat16": {k: times["bfloat16"] / v for k, v in times.items()}}
            | {"matrix_bytes": size}
        )
        _print(rows[-1])
    return rows


def _milliseconds(state: Any, tokens: torch.Tensor, prefix: int) -> float:
    started = time.perf_counter()
    state.forward(tokens)
    taken = time.perf_counter() - started
    state.rollback(prefix)
    return 1e3 * taken


def _print(row: Row) -> None:
    cells = [
        f"{kind} {row['milliseconds'][kind]:8.3f} ms ({row['faster_than_float32'][kind]:.2f}x)"
        for kind in KINDS
    ]
    _log(f"{row['model']:>5}  T({row['tokens']})  " + "   ".join(cells))


# ---------------------------------------------------------------------------- as a draft
def drafts(args: argparse.Namespace) -> list[Row]:
    """The demo target with its own draft, that draft in int8, and its own int8 copy."""
    target, draft, tokenizer = demo_pair()
    prompts = [tokenizer.encode(text) for text in read_prompts("stdlib", args.n)]
    params = SamplingParams(max_new_tokens=args.max_new_tokens, ignore_eos=True)
    contestants = {
        "none (ar)": None,
        "demo draft": draft,
        "demo draft, int8": load_model(DEMO_DIR / "draft", weights="int8"),
        "the target's int8 copy": load_model(TARGET, weights="int8"),
    }
    engines = {
        name: Engine(
            target, each, policy="ar" if each is None else "sps", gamma=args.gamma,
            threads=args.threads,
        )
        for name, each in contestants.items()
    }  # fmt: skip
    for engine in engines.values():
        engine.generate(prompts[0], params)
    runs: dict[str, list[Any]] = {name: [] for name in engines}
    for prompt in prompts:
        for name, engine in engines.items():
            runs[name].append(engine.generate(prompt, params))
    return [_drafted(name, runs[name], runs["none (ar)"], args) for name in runs]


def _drafted(name: str, runs: list[Any], alone: list[Any], args: argparse.Namespace) -> Row:
    if any(ours.tokens != theirs.tokens for ours, theirs in zip(runs, alone, strict=True)):
        raise RuntimeError(f"{name}: the output was not the target's own")
    accepted = sum(run.stats.accepted_chain for run in runs)
    judged = accepted + sum(run.stats.rejections for run in runs)
    speed = statistics.median(run.stats.tokens_per_second for run in runs)
    row = {
        "draft": name,
        "prompts": len(runs),
        "gamma": args.gamma,
        "acceptance_rate": accepted / judged if judged else None,
        "tokens_per_second": speed,
    }
    rate = row["acceptance_rate"]
    _log(f"{name:24} acceptance {'-' if rate is None else f'{rate:.3f}':6} {speed:8.1f} tokens/s")
    return row


# ---------------------------------------------------------------------------- the command
def main() -> int:
    """Measure what the command line asks for and write the result file."""
    args = _parser().parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.repeats = {"demo": args.repeat * 10, "135m": args.repeat, "1b": args.repeat}
    with torch.inference_mode(), ops.limit_threads(args.threads):
        found = {
            "forwards": [row for name in args.models for row in forwards(name, args)],
            "drafts": drafts(args) if args.n else [],
        }
    if args.out is not None:
        about = machine.record("weights", "cpu")
        settings = {key: val for key, val in vars(args).items() if key not in ("out", "repeats")}
        about |= {"settings": settings, "cores": num_cores(), "load_average": load_average()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(about | found, indent=1) + "\n", encoding="utf-8")
        _log(f"wrote {args.out}")
    _log(tables(found))
    return 0


def tables(found: Row) -> str:
    """What docs/weights.md shows of a result."""
    lines = [
        "| sizes of | tokens | float32 ms | bfloat16 ms | int8 ms | int8 x float32 | x bfloat16 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["forwards"]:
        times = [f"{row['milliseconds'][kind]:.3g}" for kind in KINDS]
        ratios = [f"{row[f'faster_than_{kind}']['int8']:.2f}" for kind in KINDS[:2]]
        cells = [NAMES[row["model"]], str(row["tokens"]), *times, *ratios]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| draft | acceptance | tokens/s |", "| --- | --- | --- |"]
    for row in found["drafts"]:
        rate = "-" if row["acceptance_rate"] is None else f"{row['acceptance_rate']:.3f}"
        lines.append(f"| {row['draft']} | {rate} | {row['tokens_per_second']:.0f} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--models", nargs="*", choices=MODELS, default=list(MODELS), help="default: all")
    add("--rows", nargs="+", type=int, default=[1, 5], metavar="M", help="tokens a forward")
    add("--prefix", type=int, default=200, metavar="N", help="tokens before them")
    add("--repeat", type=int, default=15, metavar="N", help="forwards of each, demo ten times that")
    add("--threads", type=int, default=1, metavar="N", help="default 1, a lane of two")
    add("--n", type=int, default=10, metavar="N", help="prompts of the drafts; 0: none")
    add("--gamma", type=int, default=4, metavar="N")
    add("--max-new-tokens", type=int, default=64, metavar="N")
    add("--out", type=Path, metavar="FILE", help="result file to be written")
    return parser


def _log(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
