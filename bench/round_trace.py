"""A profiler trace of some rounds of the demo pair, and what it says about the device's time.

    python bench/round_trace.py --device cuda --out bench/results/trace.json.gz

Writes the trace (Chrome's format, gzipped: chrome://tracing or ui.perfetto.dev show it) and, beside
it, NAME.summary.json: kernels a round, the share of the time in which the device was busy, and the
share in which two kernels ran at once, as the two arms of a round should.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import torch

from specbranch import Engine, SamplingParams, demo_pair
from specbranch.policies import POLICIES

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
PROMPT = "def quicksort(items):\n"
log = logging.getLogger("trace")


def main(argv: list[str] | None = None) -> int:
    """Trace one request after one that warms up."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = _arguments(argv)
    target, draft, tokenizer = demo_pair(dtype=args.dtype, device=args.device)
    engine = Engine(
        target, draft, tokenizer=tokenizer, policy=args.policy, rounds="device", max_seq_len=512
    )
    params = SamplingParams(max_new_tokens=args.tokens, ignore_eos=True)
    engine.generate(PROMPT, params)
    text, seconds, stats = _traced(engine, params, args.device)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(gzip.compress(text.encode()))
    result = machine.record("trace", args.device) | {
        "dtype": args.dtype,
        "policy": args.policy,
        "rounds": stats.rounds,
        "new_tokens": stats.new_tokens,
        "seconds_under_profiler": round(seconds, 6),
        **device_time(json.loads(text), stats.rounds),
    }
    summary = args.out.with_name(args.out.name.split(".")[0] + ".summary.json")
    summary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    log.info("wrote %s and %s", args.out, summary)
    return 0


def _traced(engine: Engine, params: SamplingParams, device: str) -> tuple[str, float, Any]:
    """The trace as text, how long the request took under the profiler, and its statistics."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        started = time.perf_counter()
        result = engine.generate(PROMPT, params)
        seconds = time.perf_counter() - started
        if device != "cpu":
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        return path.read_text(encoding="utf-8"), seconds, result.stats


def device_time(trace: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Microseconds from the first to the last launch's end, busy ones, and those with overlap."""
    spans = [
        (event["ts"], event["ts"] + event["dur"])
        for event in trace["traceEvents"]
        if event.get("cat") in ON_DEVICE and "dur" in event
    ]
    if not spans:
        return {"launches": 0}
    busy, overlapped = _at_least(spans, 1), _at_least(spans, 2)
    whole = max(end for _, end in spans) - min(start for start, _ in spans)
    return {
        "launches": len(spans),
        "launches_per_round": round(len(spans) / max(rounds, 1), 1),
        "device_us": round(whole, 1),
        "busy_us": round(busy, 1),
        "overlapped_us": round(overlapped, 1),
        "busy_share": round(busy / whole, 4),
        "overlapped_share": round(overlapped / whole, 4),
    }


def _at_least(spans: list[tuple[float, float]], count: int) -> float:
    """How long at least ``count`` of the spans were open."""
    edges = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    total, running, before = 0.0, 0, edges[0][0]
    for at, step in edges:
        if running >= count:
            total += at - before
        running, before = running + step, at
    return total


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="F.json.gz")
    add("--device", default="cuda")
    add("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    add("--policy", default="specbranch", choices=sorted(POLICIES))
    add("--tokens", type=int, default=48, help="new tokens of the traced request")
    args = parser.parse_args(argv)
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device was {args.device}, but there is no CUDA device; use cpu")
    return args


if __name__ == "__main__":
    sys.exit(main())
