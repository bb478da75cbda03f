"""bench/gpu_suite.sh without a GPU: its arguments, its refusal, its parts as a dry run."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import round_trace
import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "bench" / "gpu_suite.sh"


def suite(out: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    given = {"PYTHON": sys.executable, "OUT": str(out)} | env
    return subprocess.run(
        ["bash", SCRIPT, *args], capture_output=True, text=True, env=os.environ | given
    )


def statuses(out: Path) -> dict[str, str]:
    summary = json.loads((out / "summary.json").read_text())
    assert summary["kind"] == "suite" and summary["device"]
    return {part["part"]: part["status"] for part in summary["parts"]}


def test_the_script_is_well_formed() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    assert os.access(SCRIPT, os.X_OK)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SCRIPT], check=True)


def test_unknown_parts_and_options_are_refused(tmp_path) -> None:
    for argument in ("everything", "--fast"):
        done = suite(tmp_path, "--dry-run", argument)
        assert done.returncode == 2 and done.stderr.startswith("usage: bench/gpu_suite.sh")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so_in_one_line(tmp_path) -> None:
    done = suite(tmp_path, "tests", SUITE_DEVICE="cuda")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "no CUDA device, so nothing was run" in done.stderr
    assert not list(tmp_path.iterdir())


def test_parts_run_on_their_own(tmp_path) -> None:
    done = suite(tmp_path, "tests", "sanitize", "kernels", SUITE_DEVICE="cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert statuses(tmp_path) == {"tests": "ok", "sanitize": "skipped", "kernels": "ok"}
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    assert {"verify", "tree_attention", "kv_commit"} <= {row["op"] for row in rows}
    log = (tmp_path / "suite.log").read_text()
    assert "passed" in log and "| `verify` |" in log


def test_a_part_that_runs_out_of_time_does_not_stop_the_others(tmp_path) -> None:
    done = suite(tmp_path, "--dry-run", "trace", "sanitize", SUITE_LIMIT="0.5")
    assert done.returncode == 1
    assert statuses(tmp_path) == {"trace": "timeout", "sanitize": "skipped"}


def test_a_part_that_fails_is_reported(tmp_path) -> None:
    broken = tmp_path / "python"
    broken.write_text(
        f'#!/bin/sh\n[ "$1" = bench/machine.py ] || exit 3\nexec {sys.executable} "$@"\n'
    )
    broken.chmod(0o755)
    done = suite(tmp_path, "--dry-run", "build", PYTHON=str(broken))
    assert done.returncode == 1 and statuses(tmp_path) == {"build": "failed"}


def test_trace_of_a_request(tmp_path) -> None:
    out = tmp_path / "some.json.gz"
    argv = ["--device", "cpu", "--dtype", "float32", "--tokens", "8", "--out", str(out)]
    assert round_trace.main(argv) == 0
    assert json.loads(gzip.decompress(out.read_bytes()))["traceEvents"]
    summary = json.loads((tmp_path / "some.summary.json").read_text())
    assert summary["new_tokens"] == 8 and 0 < summary["rounds"] <= 8


def test_device_time_counts_overlap_once() -> None:
    spans = [(0, 10), (5, 10), (30, 10), (30, 5)]  # start, duration
    events = [{"cat": "kernel", "ts": ts, "dur": dur} for ts, dur in spans]
    events.append({"cat": "cpu_op", "ts": 0, "dur": 1000})
    found = round_trace.device_time({"traceEvents": events}, 2)
    assert found["launches"] == 4 and found["launches_per_round"] == 2
    assert (found["device_us"], found["busy_us"], found["overlapped_us"]) == (40, 25, 10)
    assert (found["busy_share"], found["overlapped_share"]) == (0.625, 0.25)


STUB = f"""#!/bin/sh
[ "$1" = bench/machine.py ] && exec {sys.executable} "$@"
case "$*" in
  *humaneval*) exit 1 ;;
  *get_device_capability*) echo 90-real; exit ;;
  *pytest*) echo "3 passed" ;;
esac
echo "RUN $(basename "$0") $* $SPECBRANCH_CUDA_ARCHITECTURES"
"""


def test_what_it_runs_where_there_is_a_gpu(tmp_path) -> None:
    """Every command, given to a stand-in for Python and for the sanitizer."""
    for name in ("python", "compute-sanitizer"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "trace.summary.json").touch()
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = suite(tmp_path, PYTHON=str(tmp_path / "python"), SUITE_DEVICE="cuda", PATH=path)
    ran = [line for line in done.stdout.splitlines() if line.startswith("RUN ")]
    assert set(statuses_of_table(done.stdout)) == {"ok"}
    for wanted in (
        "-m pip install -q -e . --no-build-isolation --no-deps --no-index 90-real",
        "-m pytest -q -rs -p no:cacheprovider -m cuda tests",
        "--tool memcheck --kernel-name kns=specbranch",
        "--tool racecheck --kernel-name kns=specbranch",
        "--tool initcheck --target-processes all",
        "bench/kernels.py --device cuda",
        "bench/e2e.py --device cuda --prompts bench/prompts.txt",
        "bench/e2e.py --device cuda --dtype bfloat16 --inflate 7b 68m",
        "bench/round_trace.py --device cuda",
    ):
        assert any(wanted in line for line in ran), wanted


def statuses_of_table(printed: str) -> list[str]:
    rows = printed.split("seconds\n")[-1].splitlines()
    assert len(rows) == 6
    return [row.split()[1] for row in rows]
