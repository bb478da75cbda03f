"""Registers, spills and static shared memory of every CUDA kernel, from ptxas; no GPU needed.

    python bench/registers.py --out bench/results/registers.json    # compiles, a target at a time
    python bench/registers.py --log wheel.log                       # of a build made anyway

A build says what is read here when it is made with ``-DSPECBRANCH_RESOURCE_USAGE=ON``; the log may
be of ninja or of ``pip wheel -v``. Exit code 1: a kernel spills, a compiler warned, or the log
lacks a kernel of CMakeLists.txt for some architecture.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import machine

ARCHITECTURES = ("80-real", "90-real", "120-real")
log = logging.getLogger("registers")

SOURCE = re.compile(r"Building CUDA object \S*csrc/(\w+)/\w+\.cu")
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
FUNCTION = re.compile(r"Function properties for (\w+)")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
VERSION = re.compile(r"CUDA compiler identification is NVIDIA (\S+)")
# As compilers write them; pip has warnings of its own.
WARNING = re.compile(r": warning[ :#]|\bwarning #\d|\b(?:nvcc|ptxas|nvlink|cudafe\+\+) warning")

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Read or make a log, write the result, say what is wrong with it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, nargs="+", metavar="F", help="build logs to read")
    parser.add_argument("--out", type=Path, metavar="F", help="result file (JSON)")
    args = parser.parse_args(argv)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in args.log or []]
    text = "\n".join(texts) if args.log else _build_logs()
    result = record(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(dumps(result), encoding="utf-8")
    log.info("%s", summary(result))
    found = complaints(result)
    for complaint in found:
        log.error("%s", complaint)
    return int(bool(found))


# ---------------------------------------------------------------------------- reading
def record(text: str) -> dict[str, Any]:
    """Everything a log says, and where it came from."""
    version = VERSION.search(text)
    warnings = [line.strip() for line in text.splitlines() if WARNING.search(line)]
    return {
        "kind": "registers",
        "date": machine.today(),
        **machine.commit("csrc", "CMakeLists.txt"),
        "nvcc": version[1] if version else _nvcc_version(),
        "warnings": list(dict.fromkeys(warnings)),
        "kernels": kernels(text),
    }


def kernels(text: str) -> list[Row]:
    """One row a kernel and architecture, in the log's order; a function that spills is one, too."""
    rows: dict[tuple[str, str], Row] = {}
    op = arch = symbol = ""
    for line in text.splitlines():
        if found := SOURCE.search(line):
            op = found[1]
        elif found := ENTRY.search(line):
            symbol, arch = found[1], found[2]
            rows[symbol, arch] = _row(op, symbol, arch)
        elif found := FUNCTION.search(line):
            symbol = found[1]
        elif found := STACK.search(line):
            stack, stores, loads = (int(value) for value in found.groups())
            row = rows.setdefault((symbol, arch), _row(op, symbol, arch))
            row.update(stack=stack, spill_stores=stores, spill_loads=loads)
        elif (found := USED.search(line)) and (symbol, arch) in rows:
            shared = SHARED.search(line)
            rows[symbol, arch].update(
                registers=int(found[1]), shared=int(shared[1]) if shared else 0
            )
    return list(rows.values())


def _row(op: str, symbol: str, arch: str) -> Row:
    return {"op": op, "kernel": short_name(symbol), "symbol": symbol, "arch": arch}


def short_name(symbol: str) -> str:
    """The function's own name within a mangled one: namespaces and arguments left out."""
    at, name = (3 if symbol.startswith("_ZN") else 2), symbol
    while found := re.match(r"\d+", symbol[at:]):
        begin = at + len(found[0])
        at = begin + int(found[0])
        name = symbol[begin:at]
    return name


# ---------------------------------------------------------------------------- judging
def complaints(result: dict[str, Any]) -> list[str]:
    """What must not be: empty where all is well."""
    rows = result["kernels"]
    found = [f"the compiler warned: {line}" for line in result["warnings"]]
    for row in rows:
        spilled = row.get("spill_stores", 0) + row.get("spill_loads", 0)
        if spilled:
            found.append(
                f"{row['kernel']} spills {spilled} bytes on {row['arch']}: {row['symbol']}"
            )
    archs = {row["arch"] for row in rows}
    by_symbol = defaultdict(set)
    for row in rows:
        if "registers" in row:
            by_symbol[row["op"], row["symbol"]].add(row["arch"])
    missing = _ops_with_kernels() - {op for op, _ in by_symbol}
    found += [f"the log has no kernel of {op}" for op in sorted(missing)]
    for (_, symbol), present in by_symbol.items():
        if present != archs:
            found.append(
                f"{short_name(symbol)} is missing for {', '.join(sorted(archs - present))}"
            )
    return found


def _ops_with_kernels() -> set[str]:
    sources = (machine.ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    return set(re.findall(r"csrc/(\w+)/\w+\.cu\b", sources)) - {"common"}


def summary(result: dict[str, Any]) -> str:
    """One line an architecture."""
    lines = [f"nvcc {result['nvcc']}"]
    by_arch = defaultdict(list)
    for row in result["kernels"]:
        by_arch[row["arch"]].append(row)
    for arch, rows in by_arch.items():
        most = max(rows, key=lambda row: row.get("registers", 0))
        spills = sum(row.get("spill_stores", 0) + row.get("spill_loads", 0) for row in rows)
        lines.append(
            f"{arch}: {len(rows)} kernels, at most {most.get('registers')} registers "
            f"({most['kernel']}), {spills} bytes spilled"
        )
    return "\n".join(lines)


def dumps(result: dict[str, Any]) -> str:
    """JSON with a line for each kernel."""
    head = json.dumps({key: val for key, val in result.items() if key != "kernels"}, indent=1)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in result["kernels"])
    return f'{head[:-2]},\n "kernels": [\n{rows}\n ]\n}}\n'


# ---------------------------------------------------------------------------- building
def _build_logs() -> str:
    """Compile the CUDA sources, one architecture after the other, with warnings as errors."""
    import pybind11

    logs = []
    for arch in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            defines = {
                "SPECBRANCH_CUDA": "ON",
                "SPECBRANCH_RESOURCE_USAGE": "ON",
                "CMAKE_CUDA_ARCHITECTURES": arch,
                "Python_EXECUTABLE": sys.executable,
                "pybind11_DIR": pybind11.get_cmake_dir(),
            }
            given = [f"-D{key}={value}" for key, value in defines.items()]
            logs.append(_run(["cmake", "-GNinja", "-S", str(machine.ROOT), "-B", folder, *given]))
            targets = _run(["ninja", "-C", folder, "-t", "targets", "all"])
            objects = re.findall(r"^(\S+\.cu\.o):", targets, re.MULTILINE)
            logs.append(_run(["ninja", "-C", folder, "-j1", *objects]))
    return "\n".join(logs)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{command[0]} failed, see above")
    return done.stdout


def _nvcc_version() -> str | None:
    try:
        text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    except FileNotFoundError:
        return None
    found = re.search(r"release \S+, V(\S+)", text)
    return found[1] if found else None


if __name__ == "__main__":
    sys.exit(main())
