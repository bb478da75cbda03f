"""Tables of results about kernels, made from the result files alone; ``report.py`` calls them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

Result = dict[str, Any]

OURS = "specbranch"
PEERS = ("torch", "compiled", "flashinfer")


def is_ours(result: Result) -> bool:
    """Whether this module knows the result's kind."""
    return result.get("kind") in ("kernels", "registers")


def tables(result: Result) -> str:
    """The tables of one result, and the line that says how they came about."""
    return _kernels(result) if result["kind"] == "kernels" else _registers(result)


def row_of(cells: list[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


# ---------------------------------------------------------------------------- speed
def _kernels(result: Result) -> str:
    head = ["op", "size", "microseconds", *(f"x {name}" for name in PEERS)]
    head += ["share of copy", "launches", "launches (torch)"]
    lines = [row_of(head), row_of(["---", "---"] + ["---:"] * (len(head) - 2))]
    order = {op: idx for idx, op in enumerate(dict.fromkeys(row["op"] for row in result["rows"]))}
    for row in sorted(result["rows"], key=lambda row: order[row["op"]]):
        lines.append(row_of(_cells(row)))
    notes = [_meaning(result), _absent(result), _left_out(result), _provenance(result)]
    return "\n".join(lines) + "\n\n" + "\n\n".join(note for note in notes if note) + "\n"


def _cells(row: Result) -> list[str]:
    calls = row["calls"]
    share = f"{100 * row['share_of_copy']:.1f} %" if "share_of_copy" in row else ""
    return [
        f"`{row['op']}`",
        row["size"],
        _time(calls[OURS]),
        *(ratio(row, name) for name in PEERS),
        share + (" (warm)" if share and row["warm"] else ""),
        _count(calls[OURS]),
        _count(calls.get("torch", {})),
    ]


def ratio(row: Result, peer: str) -> str:
    """The peer's median over ours; empty where one of them has none."""
    ours, theirs = row["calls"][OURS].get("us"), row["calls"].get(peer, {}).get("us")
    return f"{theirs[1] / ours[1]:.2f}" if ours and theirs else ""


def _time(call: Result) -> str:
    if "us" not in call:
        return "FAILED"
    low, median, high = call["us"]
    return f"{median:.1f} ({low:.1f} - {high:.1f})"


def _count(call: Result) -> str:
    return str(call["launches"]) if call.get("launches") is not None else ""


def _meaning(result: Result) -> str:
    copied = result["copy_bytes_per_second"] / 1e12
    return (
        f"Microseconds a call: median (quartiles) by {result['timing']}, {result['dtype']}; x: the "
        f"peer's median over ours. Share of copy: bytes that had to move a second, over the "
        f"{copied:.2f} TB/s that a large copy within the device reached in the same run, read and "
        "written; warm: all inputs together fit into the L2 cache."
    )


def _absent(result: Result) -> str:
    """Peers that are nowhere in the table, and why."""
    reasons: dict[str, set[str]] = defaultdict(set)
    present = set()
    for row in result["rows"]:
        for name, call in row["calls"].items():
            if "us" in call:
                present.add(name)
            reasons[name].add(call.get("absent") or call.get("error", ""))
    parts = []
    for name in PEERS:
        if name in present:
            continue
        found = sorted(reason for reason in reasons[name] if reason and "no such op" not in reason)
        parts.append(f"No {name}: {'; '.join(found) or 'not asked for'}.")
    return " ".join(parts)


def _left_out(result: Result) -> str:
    count = len(result["left_out"])
    return f"{count} sizes were left out for lack of time; the file names them." if count else ""


def _provenance(result: Result) -> str:
    driver = f", driver {result['driver']}" if result["driver"] else ""
    return (
        f"{result['device']}{driver}; {result['date']}, commit {commit(result)}, torch "
        f"{result['versions']['torch']}: `{result['command']}`"
    )


def commit(result: Result) -> str:
    """Ten digits, and whether the sources were other ones."""
    digits = (result["commit"] or "unknown")[:10]
    return f"{digits} with uncommitted changes" if result["uncommitted_changes"] else digits


# ---------------------------------------------------------------------------- registers
def _registers(result: Result) -> str:
    rows = [row for row in result["kernels"] if "registers" in row]
    archs = list(dict.fromkeys(row["arch"] for row in rows))
    by_kernel: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for row in rows:
        by_kernel[row["op"], row["kernel"]].append(row)
    head = ["op", "kernel", "variants", *archs, "static shared bytes", "bytes spilled"]
    lines = [row_of(head), row_of(["---", "---"] + ["---:"] * (len(head) - 2))]
    for (op, kernel), found in sorted(by_kernel.items()):
        variants = len({row["symbol"] for row in found})
        most = [max(row["registers"] for row in found if row["arch"] == arch) for arch in archs]
        shared = max(row["shared"] for row in found)
        spilled = sum(row["spill_stores"] + row["spill_loads"] for row in found)
        numbers = [str(value) for value in (variants, *most, shared, spilled)]
        lines.append(row_of([f"`{op}`", f"`{kernel}`", *numbers]))
    warned = f"{len(result['warnings'])} warnings" if result["warnings"] else "no warnings"
    note = (
        f"Registers a thread, the most of a kernel's variants; nvcc {result['nvcc']}, {warned}; "
        f"{result['date']}, commit {commit(result)}: `python bench/registers.py`"
    )
    return "\n".join(lines) + "\n\n" + note + "\n"
