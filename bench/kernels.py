"""Every kernel beside what one would assemble from PyTorch, at the sizes of real models.

    python bench/kernels.py --device cuda --out bench/results/kernels.json
    python bench/kernels.py --device cpu --quick --out /tmp/kernels.json        # a dry run

A row holds, for us and each peer (``peers.py``): microseconds (quartiles) and launches on the
device; and for the case: the bytes that had to move (inputs once, outputs once) and the share of
the device's copy bandwidth, measured in the same run, that this makes. How a call is timed:
``clock.py``. Cases come in turns, an op at a time, so that a run that ``--seconds`` ends early has
measured every op; what was left out is in the result. Exit code 1: a call of ours failed.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import machine
import torch
from clock import Clock
from kernel_cases import Case, Grid, Inputs, all_cases
from peers import NAMES, Absent, Peer, peer

OURS = "specbranch"
log = logging.getLogger("kernels")


def main(argv: list[str] | None = None) -> int:
    """Measure what the command line asks for and write the result file."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = _arguments(argv)
    torch.manual_seed(0)
    clock = Clock(args.device, args.eager, args.repeats, 0.05 if args.quick else 0.2)
    bandwidth = clock.copy_bandwidth((16 if args.quick else 512) * 2**20)
    log.info("copy: %.1f GB/s, read and written", bandwidth / 1e9)
    rows, left_out = _run(_cases(args), clock, bandwidth, args)
    result = machine.record("kernels", args.device) | {
        "dtype": args.dtype,
        "timing": clock.way,
        "copy_bytes_per_second": bandwidth,
        "cache_bytes": clock.cache_bytes(),
        "peers": args.peers,
        "left_out": left_out,
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    log.info("wrote %s; %d rows, %d cases left out", args.out, len(rows), len(left_out))
    return int(any("us" not in row["calls"][OURS] for row in rows))


def _cases(args: argparse.Namespace) -> list[Case]:
    dtype = getattr(torch, args.dtype)
    grid = Grid.corner(args.device, dtype) if args.quick else Grid(args.device, dtype)
    return [case for case in all_cases(grid) if not args.ops or case.op in args.ops]


def _run(
    cases: list[Case], clock: Clock, bandwidth: float, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows, and the cases that there was no time for."""
    end = time.monotonic() + args.seconds
    rows: list[dict[str, Any]] = []
    for idx, case in enumerate(cases):
        if time.monotonic() > end:
            return rows, [f"{left.op} {left.size}" for left in cases[idx:]]
        rows.append(measure(case, clock, bandwidth, args.peers, args.quick))
    return rows, []


def measure(
    case: Case, clock: Clock, bandwidth: float, peers: list[str], quick: bool = False
) -> dict[str, Any]:
    """All contestants of one case, on the same inputs."""
    count = clock.num_sets(case.num_bytes, quick)
    inputs = [case.make() for _ in range(count)]
    calls = {OURS: _timed(case.ours, inputs, clock)}
    only_tensors = [_tensors(one) for one in inputs]
    for name in peers:
        try:
            calls[name] = _timed(peer(name, case), only_tensors, clock)
        except Absent as reason:
            calls[name] = {"absent": str(reason)}
    row = {
        "op": case.op,
        "size": case.size,
        "bytes": case.num_bytes,
        "warm": count * case.num_bytes < clock.cache_bytes(),
        "calls": calls,
    }
    if "us" in calls[OURS]:
        row["share_of_copy"] = round(case.num_bytes / calls[OURS]["us"][1] * 1e6 / bandwidth, 4)
    _log_row(row)
    del inputs, only_tensors
    if clock.device != "cpu":
        torch.cuda.empty_cache()  # the graphs' memory; the next case may need all there is
    return row


def _tensors(inputs: Inputs) -> Inputs:
    """What a peer may read; objects of ours would only make torch.compile compile again."""
    return {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}


def _timed(call: Peer, inputs: list[Inputs], clock: Clock) -> dict[str, Any]:
    """Microseconds and launches; or the first line of what went wrong, as a result of its own."""
    try:
        calls = [functools.partial(call, one) for one in inputs]
        quartiles = clock.quartiles(calls)
        return {
            "us": [round(one, 3) for one in quartiles],
            "launches": clock.num_launches(calls[0]),
        }
    except Absent:
        raise
    except Exception as error:  # what cannot be compiled or captured, and what does not fit
        first_line = (str(error).splitlines() or [""])[0]
        return {"error": f"{type(error).__name__}: {first_line}"}


def _log_row(row: dict[str, Any]) -> None:
    cells = [
        f"{name} {call['us'][1]:.1f} us" if "us" in call else f"{name} -"
        for name, call in row["calls"].items()
    ]
    share = 100 * row.get("share_of_copy", 0.0)
    log.info("%-15s %-30s %5.1f %% of copy  %s", row["op"], row["size"], share, "  ".join(cells))
    for name, call in row["calls"].items():
        if "error" in call:
            log.warning("%s %s: %s", row["op"], name, call["error"])


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="F", help="result file (JSON)")
    add("--device", default="cuda")
    add("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    add("--quick", action="store_true", help="a corner of the grid")
    add("--eager", action="store_true", help="single calls, not graphs")
    add("--repeats", type=int, default=50, help="most timings of a call")
    add("--seconds", type=float, default=float("inf"), help="begin no case after this long")
    add("--ops", nargs="+", help="only these")
    add("--peers", nargs="*", choices=NAMES, help="default: all; on a CPU torch and flashinfer")
    args = parser.parse_args(argv)
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device was {args.device}, but there is no CUDA device; use cpu")
    if args.peers is None:  # compiling for a CPU takes minutes and says nothing about kernels
        args.peers = [name for name in NAMES if args.device != "cpu" or name != "compiled"]
    return args


if __name__ == "__main__":
    sys.exit(main())
