"""Tables and pictures of kernel results say what files say; what ptxas reports is read right."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import registers
import report
import report_kernels
import report_plots

ROOT = Path(__file__).resolve().parent.parent

KERNELS: dict[str, Any] = {
    "kind": "kernels",
    "command": "python bench/kernels.py",
    "date": "2000-01-01",
    "commit": "0123456789abcdef",
    "uncommitted_changes": False,
    "device": "GPU",
    "driver": "1.2",
    "versions": {"torch": "3"},
    "dtype": "bfloat16",
    "timing": "graph replays",
    "copy_bytes_per_second": 2e12,
    "left_out": [],
    "rows": [
        {
            "op": "verify",
            "size": "B=1",
            "bytes": 4_000_000,
            "warm": False,
            "share_of_copy": 0.5,
            "calls": {
                "specbranch": {"us": [3.0, 4.0, 5.0], "launches": 2},
                "torch": {"us": [30.0, 40.0, 50.0], "launches": 21},
                "compiled": {"us": [8.0, 10.0, 12.0], "launches": 5},
                "flashinfer": {"absent": "not installed: no"},
            },
        },
        {
            "op": "kv_write",
            "size": "B=1",
            "bytes": 1000,
            "warm": True,
            "share_of_copy": 0.01,
            "calls": {
                "specbranch": {"us": [1.0, 2.0, 3.0], "launches": 1},
                "torch": {"error": "RuntimeError: no"},
                "compiled": {"error": "RuntimeError: no"},
                "flashinfer": {"absent": "no such op in FlashInfer"},
            },
        },
    ],
}


def cells(table: str, op: str) -> list[str]:
    row = next(line for line in table.splitlines() if line.startswith(f"| `{op}`"))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_pages_are_those_of_the_result_files() -> None:
    for page in report.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert report.filled(text) == text, "run: python bench/report.py"


def test_kernel_table() -> None:
    table = report.tables(KERNELS)
    first = ["B=1", "4.0 (3.0 - 5.0)", "10.00", "2.50", "", "50.0 %", "2", "21"]
    assert cells(table, "verify") == first
    assert cells(table, "kv_write") == [
        "B=1",
        "2.0 (1.0 - 3.0)",
        "",
        "",
        "",
        "1.0 % (warm)",
        "1",
        "",
    ]
    assert "No flashinfer: not installed: no." in table and "left out" not in table
    assert "GPU, driver 1.2; 2000-01-01, commit 0123456789, torch 3" in table


def test_what_failed_and_what_is_missing_is_said() -> None:
    result = copy.deepcopy(KERNELS)
    result["rows"][0]["calls"]["specbranch"] = {"error": "RuntimeError: no"}
    del result["rows"][0]["share_of_copy"]
    result["left_out"] = ["sample B=1", "sample B=8"]
    result["uncommitted_changes"] = True
    table = report_kernels.tables(result)
    assert cells(table, "verify")[1] == "FAILED" and cells(table, "verify")[2] == ""
    assert "2 sizes were left out" in table and "with uncommitted changes" in table


def test_pictures_show_least_median_and_largest() -> None:
    assert report_plots.shares(KERNELS) == {"verify": (50, 50, 50), "kv_write": (1, 1, 1)}
    runs = [
        {"temperature": 0.0, "method": "ar", "new_tokens": 10, "seconds": seconds}
        for seconds in (1.0, 2.0, 5.0)
    ]
    result = {"kind": "e2e", "runs": runs, "device": {"cpu": "CPU"}}
    assert report_plots.pictures(result) == [
        ("t0", "greedy: CPU", "tokens/s", {"ar": (2.0, 5.0, 10.0)})
    ]
    assert report_plots.pictures({"kind": "registers"}) == []


def test_plots_without_matplotlib_say_what_is_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "k.json").write_text(json.dumps(KERNELS))
    with pytest.raises(SystemExit, match="matplotlib, which is not installed"):
        report_plots.draw_all(tmp_path, tmp_path)


def test_plots(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "k.json").write_text(json.dumps(KERNELS))
    (written,) = report_plots.draw_all(tmp_path, tmp_path / "plots")
    assert written.name == "k-share-of-copy.svg" and "<svg" in written.read_text()


# ---------------------------------------------------------------------------- registers
VERIFY = "_ZN10specbranch4cuda20verify_decide_kernelENS_12VerifyParamsENS_10VerifyPlanE"
SAMPLE = "_ZN10specbranch4cuda12_GLOBAL__N_113sample_kernelIfLi4EEEvNS_12SampleParamsE"


def log_of(arch: str, spilled: int = 0, indent: str = "") -> str:
    """What ninja prints of two sources, as pip passes it on."""
    lines = [
        "-- The CUDA compiler identification is NVIDIA 13.0.88",
        "[1/2] Building CUDA object CMakeFiles/_C.dir/csrc/verify/verify.cu.o",
        "ptxas info    : 0 bytes gmem",
        f"ptxas info    : Compiling entry function '{VERIFY}' for '{arch}'",
        f"ptxas info    : Function properties for {VERIFY}",
        f"    {spilled} bytes stack frame, {spilled} bytes spill stores, 0 bytes spill loads",
        "ptxas info    : Used 40 registers, used 1 barriers, 128 bytes smem, 400 bytes cmem[0]",
        "[2/2] Building CUDA object CMakeFiles/_C.dir/csrc/sample/sample.cu.o",
        f"ptxas info    : Compiling entry function '{SAMPLE}' for '{arch}'",
        f"ptxas info    : Function properties for {SAMPLE}",
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads",
        "ptxas info    : Used 50 registers, used 0 barriers",
    ]
    return "".join(f"{indent}{line}\n" for line in lines)


@pytest.fixture
def two_ops(monkeypatch) -> None:
    monkeypatch.setattr(registers, "_ops_with_kernels", lambda: {"verify", "sample"})


def test_reads_registers_spills_and_shared_memory(two_ops) -> None:
    result = registers.record(log_of("sm_80", indent="  ") + log_of("sm_90"))
    assert result["nvcc"] == "13.0.88" and registers.complaints(result) == []
    first, second = result["kernels"][:2]
    assert (first["op"], first["kernel"], first["arch"]) == (
        "verify",
        "verify_decide_kernel",
        "sm_80",
    )
    assert (first["registers"], first["shared"], first["stack"]) == (40, 128, 0)
    assert (second["kernel"], second["registers"], second["shared"]) == ("sample_kernel", 50, 0)
    table = report.tables(result)
    assert cells(table, "verify") == ["`verify_decide_kernel`", "1", "40", "40", "128", "0"]
    assert json.loads(registers.dumps(result)) == result


def test_spills_are_found(two_ops) -> None:
    result = registers.record(log_of("sm_80", spilled=8))
    (complaint,) = registers.complaints(result)
    assert complaint == f"verify_decide_kernel spills 8 bytes on sm_80: {VERIFY}"


def test_warnings_are_found_and_pips_own_are_not(two_ops) -> None:
    lines = [
        "a.cuh(3): warning #177-D: variable declared but never referenced",
        "b.cpp:3:1: warning: unused variable",
        "nvcc warning : Support for offline compilation is going",
        "ptxas warning : Value of threads is out of range",
        "WARNING: Running pip as the 'root' user",
    ]
    result = registers.record(log_of("sm_80") + "\n".join(lines))
    assert result["warnings"] == lines[:4]
    assert len(registers.complaints(result)) == 4


def test_missing_kernels_are_found(two_ops) -> None:
    assert registers.complaints(registers.record("")) == [
        "the log has no kernel of sample", "the log has no kernel of verify",
    ]  # fmt: skip
    partly = log_of("sm_80") + log_of("sm_90").split("[2/2]")[0]
    assert registers.complaints(registers.record(partly)) == ["sample_kernel is missing for sm_90"]


def test_exit_code(tmp_path, two_ops) -> None:
    (tmp_path / "good").write_text(log_of("sm_80"))
    (tmp_path / "bad").write_text(log_of("sm_80", spilled=4))
    out = tmp_path / "out.json"
    assert registers.main(["--log", str(tmp_path / "good"), "--out", str(out)]) == 0
    assert registers.main(["--log", str(tmp_path / "bad"), "--out", str(out)]) == 1
    assert json.loads(out.read_text())["kernels"][0]["spill_stores"] == 4


def test_committed_registers_are_of_every_kernel() -> None:
    result = json.loads((ROOT / "bench" / "results" / "registers.json").read_text())
    assert registers.complaints(result) == []
    assert {row["arch"] for row in result["kernels"]} == {"sm_80", "sm_90", "sm_120"}
