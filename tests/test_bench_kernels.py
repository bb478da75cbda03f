"""The kernel benchmarks: peers compute what the ops compute, and a run records what it claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import clock
import kernel_cases
import kernels
import peers
import pytest
import torch

GRID = kernel_cases.Grid.corner("cpu", torch.float32)
CASES = list(kernel_cases.all_cases(GRID))
SAME = {  # ops whose composition gives the very values, and what of the inputs they change
    "logit_cutoff": [],
    "branch_topk": [],
    "tree_attention": [],
    "tree_mask": [],
    "kv_commit": ["cache"],
    "kv_write": ["cache"],
    "rope_kv_write": ["cache"],
    "add_rms_norm": ["x"],
    "silu_mul": [],
}


def copied(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs that a call may change."""
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }


def tensors(result: object) -> list[torch.Tensor]:
    """The outputs of a call."""
    if isinstance(result, torch.Tensor):
        return [result]
    return list(result) if isinstance(result, tuple) else []


def small(case: kernel_cases.Case) -> dict[str, Any]:
    torch.manual_seed(1)
    return case.make()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.size}")
def test_every_case_runs_and_moves_something(case) -> None:
    inputs = small(case)
    case.ours(copied(inputs))
    case.plain(copied(inputs))
    assert case.num_bytes > 0


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.op in SAME], ids=lambda case: f"{case.op}-{case.size}"
)
def test_the_composition_computes_the_same(case) -> None:
    inputs = small(case)
    ours, theirs = copied(inputs), copied(inputs)
    found, expected = tensors(case.ours(ours)), tensors(case.plain(theirs))
    found += [ours[name] for name in SAME[case.op]]
    expected += [theirs[name] for name in SAME[case.op]]
    if case.op in ("kv_commit", "kv_write"):
        found, expected = found[-1:], expected[-1:]
    if case.op == "branch_topk":  # ours leaves out those beyond the count
        count = int(found[1][0])
        found[0], expected[0] = found[0][:, :count], expected[0][:, :count]
    assert len(found) == len(expected) > 0
    for got, wanted in zip(found, expected, strict=True):
        wanted = wanted.transpose(1, 2) if case.op == "tree_attention" else wanted
        torch.testing.assert_close(
            got.double().view_as(wanted), wanted.double(), rtol=1e-4, atol=1e-5
        )


def test_verification_reads_every_row_it_counts() -> None:
    """A chain, or a path, that is accepted as a whole: else the bytes would be too many."""
    for case in CASES:
        if case.op in ("verify", "verify_tree"):
            accepted = case.ours(small(case)).num_accepted
            rows = 8 if case.size.startswith("coupled") else 4
            assert accepted.tolist() == [rows]


def test_advance_has_room_for_every_call_of_a_run() -> None:
    case = next(case for case in CASES if case.op == "advance")
    inputs = small(case)
    before = int(inputs["state"].length)
    calls = 3 + 50 * 21 + 5  # warm-up, replays of at most 20 rotations, estimate
    for _ in range(calls):
        case.ours(inputs)
    assert int(inputs["state"].length) == before + calls


def test_every_op_with_a_cuda_kernel_has_a_case() -> None:
    sources = (kernels.machine.ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    folders = {
        line.split("/")[1]
        for line in sources.splitlines()
        if line.strip().rstrip(")").endswith(".cu") and "/common/" not in line
    }
    # A single thread that reads a clock: there is nothing to compare it with.
    assert {case.op for case in CASES} | {"stopwatch"} == folders


def test_cases_come_in_turns() -> None:
    grid = kernel_cases.Grid("cpu", torch.float32, layers=2)
    first = [case.op for case, _ in zip(kernel_cases.all_cases(grid), range(15), strict=False)]
    assert set(first) == {case.op for case in CASES}
    everything = [(case.op, case.size) for case in kernel_cases.all_cases(grid)]
    assert len(everything) == len(set(everything))
    for vocab, gamma, batch in [(32_000, 4, 1), (128_256, 8, 8), (256_000, 16, 64)]:
        assert ("verify", f"B={batch} G={gamma} V={vocab}") in everything


def run(tmp_path: Path, *more: str) -> dict[str, Any]:
    out = tmp_path / "kernels.json"
    argv = ["--device", "cpu", "--quick", "--repeats", "3", "--out", str(out), *more]
    assert kernels.main(argv) == 0
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def test_a_run_records_times_peers_and_origin(tmp_path) -> None:
    result = run(tmp_path, "--ops", "sample", "silu_mul")
    assert {row["op"] for row in result["rows"]} == {"sample", "silu_mul"}
    for row in result["rows"]:
        low, median, high = row["calls"]["specbranch"]["us"]
        assert 0 < low <= median <= high
        assert row["calls"]["torch"]["us"] and row["share_of_copy"] > 0
        flashinfer = row["calls"]["flashinfer"]
        assert "us" in flashinfer or flashinfer["absent"].startswith("not installed")
    assert result["kind"] == "kernels" and result["left_out"] == []
    assert result["command"].startswith("python bench/") and result["device"]
    assert result["copy_bytes_per_second"] > 0 and result["timing"] == "host clock"


def test_a_time_limit_stops_between_cases_and_says_what_is_missing(tmp_path) -> None:
    result = run(tmp_path, "--seconds", "0", "--peers")
    assert len(result["rows"]) + len(result["left_out"]) == len(CASES)
    assert len(result["left_out"]) >= len(CASES) - 1


def test_a_failure_is_a_result_and_an_exit_code(tmp_path, monkeypatch) -> None:
    def broken(inputs: object) -> object:
        raise RuntimeError("first line\nsecond line")

    case = next(case for case in CASES if case.op == "silu_mul")
    wrong = kernel_cases.Case("silu_mul", "s", 1, case.make, broken, case.plain)
    monkeypatch.setattr(kernels, "all_cases", lambda grid: [wrong])
    out = tmp_path / "kernels.json"
    argv = ["--device", "cpu", "--quick", "--repeats", "3", "--out", str(out)]
    assert kernels.main(argv) == 1
    calls = json.loads(out.read_text())["rows"][0]["calls"]
    assert calls["specbranch"] == {"error": "RuntimeError: first line"} and calls["torch"]["us"]


def test_absent_peers_say_why(monkeypatch) -> None:
    monkeypatch.setattr(peers.importlib, "import_module", _not_installed)
    peers._flashinfer.cache_clear()
    by_op = {case.op: case for case in CASES}
    with pytest.raises(peers.Absent, match="not installed: no flashinfer"):
        peers.peer("flashinfer", by_op["verify"])
    with pytest.raises(peers.Absent, match="no such op in FlashInfer"):
        peers.peer("flashinfer", by_op["kv_commit"])


def _not_installed(name: str) -> None:
    raise ImportError(f"no {name}")


def test_a_device_that_is_not_there_is_refused(tmp_path, capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(SystemExit):
        kernels.main(["--device", "cuda", "--out", str(tmp_path / "x.json")])
    assert "there is no CUDA device" in capsys.readouterr().err


def test_quartiles_of_a_known_call() -> None:
    low, median, high = clock.Clock("cpu", repeats=9).quartiles([lambda: sum(range(1000))])
    assert 0 < low <= median <= high
    assert clock.Clock("cpu", repeats=1).quartiles([lambda: None])[0] > 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("eager", [False, True])
def test_clock_on_a_device(eager: bool) -> None:
    """A copy of 64 MB: between the launch alone and a tenth of any such device's bandwidth."""
    timed = clock.Clock("cuda", eager)
    source = torch.randn(2**24, device="cuda")
    target = torch.empty_like(source)
    assert 5 < timed.quartiles([lambda: target.copy_(source)])[1] < 5000
    assert timed.num_launches(lambda: target.copy_(source)) == 1
    assert timed.num_launches(lambda: (source * 2, source * 3)) == 2
    assert timed.num_sets(timed.cache_bytes() // 4) == 8
