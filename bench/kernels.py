"""Every kernel beside what one would assemble from PyTorch, at the sizes of real models.

    python bench/kernels.py --device cuda --out bench/results/kernels.json
    python bench/kernels.py --device cpu --quick --out /tmp/kernels.json        # a dry run

Columns: microseconds (median, quartiles), bytes that had to move (inputs once, outputs once), the
share of the device's copy bandwidth, measured in the same run, that this makes, and the peer's time
over ours. On CUDA a call is a replay of a captured graph of ten calls that rotate among sets of inputs
larger than the L2 cache; ``--eager`` times single calls with events instead, launch cost included.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from specbranch import _C, __version__, ops

Call = Callable[[], object]
ROTATE_BYTES = 200e6  # inputs in all: more than the 50 MB of an H100's L2
log = logging.getLogger("kernels")


@dataclass
class Case:
    """One op at one size: a maker of (our call, the peer's call), and the bytes of a call."""

    op: str
    size: str
    make: Callable[[], tuple[Call, Call]]
    num_bytes: int


def _size(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# ---------------------------------------------------------------------------- the cases
def row_cases(device: str, dtype: torch.dtype, batch: int, vocab: int) -> Iterator[Case]:
    """Ops that read rows of logits."""

    def logits() -> torch.Tensor:
        return (3 * torch.randn(batch, vocab, device=device)).to(dtype)

    size, moved = f"B={batch} V={vocab}", batch * vocab * dtype.itemsize
    seed, position, lane = (torch.arange(batch, device=device) for _ in range(3))
    heat = torch.full((batch,), 0.7, device=device)

    def make_sample() -> tuple[Call, Call]:
        x = logits()
        return (
            lambda: ops.sample(x, heat, seed, position, lane=lane.int()),
            lambda: torch.multinomial(torch.softmax(x.float() / 0.7, -1), 1),
        )

    def make_cutoff() -> tuple[Call, Call]:
        x = logits()
        top_k = torch.full((batch,), 50, dtype=torch.int32, device=device)
        top_p, min_p = torch.full((batch,), 0.9, device=device), torch.zeros(batch, device=device)

        def plain() -> object:
            values, _ = torch.sort(x.float() / 0.7, descending=True)
            kept = torch.softmax(values[:, :50], -1).cumsum(-1) < 0.9
            return values.gather(1, kept.sum(-1, keepdim=True))

        return lambda: ops.logit_cutoff(x, heat, top_k, top_p, min_p), plain

    def make_branches() -> tuple[Call, Call]:
        x = logits()
        return (
            lambda: ops.branch_topk(x, 6, heat),
            lambda: (torch.softmax(x.float() / 0.7, -1).amax(-1), x.topk(6)),
        )

    yield Case("sample", size, make_sample, moved)
    yield Case("logit_cutoff", size, make_cutoff, moved)
    yield Case("branch_topk", size, make_branches, moved)


def verify_case(device: str, dtype: torch.dtype, batch: int, gamma: int, vocab: int) -> Case:
    """A chain that is accepted as a whole: every row is read."""

    def make() -> tuple[Call, Call]:
        draft = (3 * torch.randn(batch, gamma, vocab, device=device)).to(dtype)
        target = torch.cat([draft, draft[:, :1]], 1)
        tokens = torch.softmax(draft.float().flatten(0, 1), -1).multinomial(1).view(batch, gamma)
        chain, full = tokens.int(), torch.full((batch,), gamma, dtype=torch.int32, device=device)
        none, zero = chain[:, :0].contiguous(), torch.zeros_like(full)
        heat = torch.ones(batch, device=device)
        seed, position = (torch.arange(batch, device=device) for _ in range(2))

        def plain() -> object:
            p, q = torch.softmax(target.float(), -1), torch.softmax(draft.float(), -1)
            at = tokens.unsqueeze(-1)
            ratio = p[:, :gamma].gather(2, at) / q.gather(2, at)
            accepted = (torch.rand_like(ratio) < ratio).squeeze(-1).int().cumprod(1).sum(1)
            rest = torch.cat([p[:, :gamma] - q, p[:, gamma:]], 1).clamp(min=0)
            row = rest.gather(1, accepted.view(-1, 1, 1).expand(-1, 1, vocab)).squeeze(1)
            return accepted, row.multinomial(1)

        return (
            lambda: ops.verify(
                target, draft, chain, full, none, zero, heat, seed, position
            ),
            plain,
        )  # fmt: skip

    moved = batch * (2 * gamma + 1) * vocab * dtype.itemsize
    return Case("verify", f"B={batch} G={gamma} V={vocab}", make, moved)


def attention_case(device: str, dtype: torch.dtype, batch: int, nodes: int, prefix: int) -> Case:
    """Tree attention of a Llama-3-8B layer: 32 query heads on 8 of 128."""
    q_heads, kv_heads, dim = 32, 8, 128
    slots = prefix + nodes

    def make() -> tuple[Call, Call]:
        q = torch.randn(batch, nodes, q_heads, dim, device=device, dtype=dtype)
        cache = torch.randn(2, batch, kv_heads, slots, dim, device=device, dtype=dtype)
        length = torch.full((batch,), prefix, dtype=torch.int32, device=device)
        parents = torch.arange(-1, nodes - 1, dtype=torch.int32, device=device).expand(batch, -1)
        bits = ops.tree_mask(parents.contiguous()).bits
        mask = torch.ones(nodes, slots, dtype=torch.bool, device=device).tril(prefix)
        heads = q.transpose(1, 2)
        return (
            lambda: ops.tree_attention(q, cache, length, bits),
            lambda: F.scaled_dot_product_attention(
                heads, cache[0], cache[1], attn_mask=mask, enable_gqa=True
            ),
        )

    moved = (2 * batch * kv_heads * slots + 2 * batch * nodes * q_heads) * dim * dtype.itemsize
    return Case("tree_attention", f"B={batch} N={nodes} prefix={prefix}", make, moved)


def commit_case(device: str, dtype: torch.dtype, layers: int, slots: int) -> Case:
    """Eight slots of every layer of a 7B model."""
    heads, dim, count = 32, 128, 8

    def make() -> tuple[Call, Call]:
        cache = torch.randn(layers, 2, 1, heads, slots, dim, device=device, dtype=dtype)
        first = slots - 64
        index = torch.arange(first + 2, first + 2 + 2 * count, 2, device=device)
        source = index.int().view(1, -1)
        start = torch.tensor([first], dtype=torch.int32, device=device)
        length = torch.tensor([count], dtype=torch.int32, device=device)

        def plain() -> object:
            cache[..., first : first + count, :] = cache[..., index, :]
            return cache

        return lambda: ops.kv_commit(cache, source, start, length), plain

    moved = 2 * layers * 2 * heads * count * dim * dtype.itemsize
    return Case("kv_commit", f"L={layers} M={count}", make, moved)


def layer_cases(device: str, dtype: torch.dtype, rows: int, width: int) -> Iterator[Case]:
    """What surrounds the matrix products."""

    def make_norm() -> tuple[Call, Call]:
        x, delta = (torch.randn(rows, width, device=device, dtype=dtype) for _ in range(2))
        weight = torch.ones(width, device=device, dtype=dtype)
        return (
            lambda: ops.add_rms_norm(x, weight, delta, eps=1e-5),
            lambda: F.rms_norm(x.add_(delta), (width,), weight, 1e-5),
        )

    def make_silu() -> tuple[Call, Call]:
        x = torch.randn(rows, 2 * width, device=device, dtype=dtype)
        return lambda: ops.silu_mul(x), lambda: F.silu(x[:, :width]) * x[:, width:]

    size, element = f"rows={rows} d={width}", rows * width * dtype.itemsize
    yield Case("add_rms_norm", size, make_norm, 4 * element)
    yield Case("silu_mul", size, make_silu, 3 * element)


def all_cases(device: str, dtype: torch.dtype, quick: bool) -> Iterator[Case]:
    """The grid of the issue, or a corner of it."""
    batches = [1] if quick else [1, 8, 64]
    for vocab in [32_000] if quick else [32_000, 128_256, 256_000]:
        for batch in batches:
            yield from row_cases(device, dtype, batch, vocab)
            for gamma in [4] if quick else [4, 8, 16]:
                yield verify_case(device, dtype, batch, gamma, vocab)
    for batch in [1] if quick else [1, 8]:
        for nodes in [9] if quick else [1, 9, 33, 64]:
            yield attention_case(device, dtype, batch, nodes, 512 if quick else 8192)
    yield commit_case(device, dtype, 4 if quick else 32, 128 if quick else 2048)
    yield from layer_cases(device, dtype, 9, 1024 if quick else 4096)


# ---------------------------------------------------------------------------- the clock
def on_cpu(calls: list[Call], repeats: int) -> list[float]:
    """Microseconds of single calls."""
    taken = []
    for idx in range(repeats):
        started = time.perf_counter()
        calls[idx % len(calls)]()
        taken.append(1e6 * (time.perf_counter() - started))
    return taken


def in_graph(calls: list[Call], repeats: int, per_graph: int = 10) -> list[float]:
    """Microseconds a call within replays of one captured graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for idx in range(per_graph):
            calls[idx % len(calls)]()
    return [one / per_graph for one in with_events([graph.replay], repeats)]


def with_events(calls: list[Call], repeats: int) -> list[float]:
    """Microseconds between events around single calls."""
    taken = []
    for idx in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        calls[idx % len(calls)]()
        end.record()
        end.synchronize()
        taken.append(1e3 * begin.elapsed_time(end))
    return taken


def clock(calls: list[Call], args: argparse.Namespace) -> list[float]:
    """Quartiles in microseconds: 25 %, 50 %, 75 %."""
    for call in calls:
        call()
    if args.device == "cpu":
        taken = on_cpu(calls, args.repeats)
    elif args.eager:
        taken = with_events(calls, args.repeats)
    else:
        taken = in_graph(calls, args.repeats)
    return statistics.quantiles(taken, n=4)


def copy_bandwidth(args: argparse.Namespace) -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.randn((16 if args.quick else 256) * 1024 * 1024 // 4, device=args.device)
    target = torch.empty_like(source)
    median = clock([lambda: target.copy_(source)], args)[1]
    return 2 * _size(source) / (median * 1e-6)


# ---------------------------------------------------------------------------- the run
def measure(case: Case, bandwidth: float, args: argparse.Namespace) -> dict[str, Any]:
    """Both sides of one case."""
    sets = 1 if args.device == "cpu" else max(1, min(16, int(ROTATE_BYTES / case.num_bytes)))
    ours, peers = zip(*(case.make() for _ in range(sets)), strict=True)
    row: dict[str, Any] = {"op": case.op, "size": case.size, "bytes": case.num_bytes}
    for name, calls in (("specbranch", ours), ("torch", peers)):
        try:
            row[name] = [round(value, 2) for value in clock(list(calls), args)]
        except RuntimeError as error:  # what cannot be captured, and what does not fit
            row[name], row[f"{name}_error"] = None, str(error).splitlines()[0]
    if row["specbranch"]:
        row["share_of_copy"] = round(case.num_bytes / row["specbranch"][1] * 1e6 / bandwidth, 4)
    if row["specbranch"] and row["torch"]:
        row["speedup"] = round(row["torch"][1] / row["specbranch"][1], 2)
    log.info(
        "%-15s %-26s %10s us  torch %10s us  %5.1f %% of copy",
        case.op,
        case.size,
        row["specbranch"] and row["specbranch"][1],
        row["torch"] and row["torch"][1],
        100 * row.get("share_of_copy", 0),
    )
    return row


def _commit() -> str:
    root = Path(__file__).resolve().parent
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True)
    return done.stdout.decode().strip()


def record(args: argparse.Namespace, bandwidth: float) -> dict[str, Any]:
    """What a reader must know to judge or repeat the figures."""
    on_cuda = args.device != "cpu"
    return {
        "kind": "kernels",
        "command": shlex.join(["python", "bench/kernels.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if on_cuda else platform.processor(),
        "versions": {"specbranch": __version__, "torch": torch.__version__},
        "build": {key: str(value) for key, value in _C.build_info().items()},
        "dtype": args.dtype,
        "copy_bytes_per_second": bandwidth,
        "microseconds": "quartiles",
    }


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--quick", action="store_true", help="a corner of the grid")
    parser.add_argument("--eager", action="store_true", help="single calls, not graphs")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--ops", nargs="*", help="only these")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device was {args.device}, but there is no CUDA device; use cpu")
    torch.manual_seed(0)
    bandwidth = copy_bandwidth(args)
    log.info("copy: %.1f GB/s, read and written", bandwidth / 1e9)
    rows = [
        measure(case, bandwidth, args)
        for case in all_cases(args.device, getattr(torch, args.dtype), args.quick)
        if not args.ops or case.op in args.ops
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record(args, bandwidth) | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
