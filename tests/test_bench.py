"""The benchmark scripts: tables say what result files say; e2e.py measures what it claims."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_checkpoint import save_pair

from specbranch.comparison.equality import TIE, judge
from specbranch.testing.table_model import TableModel

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import e2e

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
METHODS = {"ar": 100, "sps": 150, "specbranch": 200, "hf": 20, "hf-assisted": 25}


def load(name: str) -> ModuleType:
    """A module of bench/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


report = load("report")
show_picture = load("show_picture")


def synthetic_result() -> dict:
    """Two prompts of 100 tokens; the second one is decoded at half the speed by all but ``ar``."""
    counters = {"seconds": 1.0, "prefill_seconds": 0.2, "target_seconds": 0.6}
    counters |= {"committed": 90, "target_forwards": 30, "accepted": 60, "drafted": 80}
    counters |= {"rolled_back": 20, "branch_hits": 9, "branch_points": 10}
    runs = [
        {
            "temperature": 0.0,
            "prompt": prompt,
            "method": method,
            "new_tokens": 100,
            "seconds": 100 / speed * (1 if method == "ar" else 1 + prompt),
            "counters": {} if method.startswith("hf") else counters,
        }
        for method, speed in METHODS.items()
        for prompt in (0, 1)
    ]
    settings = {"threads": 2, "prompts": "humaneval", "max_new_tokens": 100}
    return {
        "runs": runs,
        "device": {"cpu": "CPU", "cores": 2},
        "versions": {"torch": "1", "transformers": "2"},
        "settings": settings | {"temperatures": [0.0]},
        "commit": "0123456789abcdef",
        "uncommitted_changes": False,
        "date": "2000-01-01",
        "command": "python bench/e2e.py",
        "prompt_tokens": [3, 4],
        "differs_from_ar": [],
    }


def cells(table: str, method: str) -> list[str]:
    """The row of one method, without its name."""
    row = next(line for line in table.splitlines() if line.startswith(f"| `{method}`"))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_readme_tables_are_those_of_the_result_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert report.filled(text) == text, "run: python bench/report.py"


def test_table_figures():
    table = report.tables(synthetic_result())
    # tokens/s over both prompts; medians (quartiles) of the ratios 2 and 1 to ar, of 8 and 8 to hf.
    assert cells(table, "specbranch")[:3] == ["133", "1.50 (1.25 - 1.75)", "8.00 (8.00 - 8.00)"]
    assert cells(table, "specbranch")[3:] == ["3.00", "2.00", "0.25", "0.90", "0.25"]
    assert cells(table, "ar")[:2] == ["100", "1"]
    assert cells(table, "hf-assisted")[2:] == ["1", "", "", "", "", ""]
    assert "0123456789" in table and "equals `ar`" in table


def test_a_difference_is_not_hidden():
    result = synthetic_result()
    result["differs_from_ar"] = [{"method": "sps", "is_ours": True, "prompt": 0, "position": 3}]
    assert "DIFFERS" in report.tables(result)
    result["differs_from_ar"][0]["is_ours"] = False
    assert "differs in 1 runs" in report.tables(result)


def summary_row(method: str, share: float, host: float | None) -> dict:
    row = {"temperature": 0.0, "method": method, "zero_bubble_share": share}
    return row | {"host_seconds_per_round": host}


def test_columns_that_only_some_results_have():
    result = synthetic_result()
    plain = report.tables(result)
    assert "zero-bubble" not in plain and "host us" not in plain
    result["summary"] = [summary_row("ar", 1.0, None), summary_row("specbranch", 0.625, None)]
    table = report.tables(result)
    assert "| of zero-bubble limit |" in table and "host us" not in table
    assert cells(table, "specbranch")[-1] == "0.62" and cells(table, "hf")[-1] == ""
    result["summary"][1]["host_seconds_per_round"] = 45.4e-6
    table = report.tables(result)
    assert "| of zero-bubble limit | host us per round |" in table
    assert cells(table, "specbranch")[-2:] == ["0.62", "45"] and cells(table, "ar")[-1] == ""


def test_rounds_on_a_device_have_no_bubble_to_show():
    result = synthetic_result()
    for run in result["runs"]:
        if run["counters"]:
            run["counters"] = run["counters"] | {"target_seconds": 0.0}
    assert cells(report.tables(result), "specbranch")[-1] == ""


def test_an_inflated_pair_is_called_inflated():
    result = synthetic_result()
    model = {"layers": 32, "hidden": 4096, "vocab": 32000, "parameters": 6.7e9}
    target, draft = model | {"shape": "7b"}, model | {"shape": "68m"}
    result["inflated"] = {"target": target, "draft": draft}
    below = report.tables(result).split("\n\n", 1)[1]
    assert "**Inflated pair**" in below and "7b (6700 million" in below and "68m" in below


def test_the_accelerator_is_named():
    result = synthetic_result()
    result["device"]["gpu"] = {"name": "Some GPU", "driver": "1.2", "cuda": "3"}
    result["settings"] |= {"device": "cuda", "dtype": "bfloat16"}
    assert "Some GPU, driver 1.2, bfloat16; 2 humaneval prompts" in report.tables(result)


def test_ties_are_told_from_differences():
    result = synthetic_result()
    tie = {"method": "sps", "is_ours": True, "prompt": 0, "position": 3, "gap": 0.031}
    result["differs_from_ar"] = [tie | {"is_tie": True}]
    table = report.tables(result)
    assert "in 1 runs" in table and "tie (0.031 apart" in table and "DIFFERS" not in table
    result["differs_from_ar"].append(tie | {"is_tie": False})
    assert "DIFFERS" in report.tables(result)


# After the tokens 1, 2 the logits are 8, 8 - gap and lower.
@pytest.mark.parametrize(
    ("dtype", "gap", "other", "is_tie"),
    [
        (torch.bfloat16, 7 * TIE, 1, True),
        (torch.bfloat16, 9 * TIE, 1, False),
        (torch.bfloat16, 7 * TIE, 2, False),  # not one of the two that are close
        (torch.float32, 0.0, 1, False),
    ],
)
def test_a_tie_is_the_targets_own(dtype: torch.dtype, gap: float, other: int, is_tie: bool):
    table = torch.zeros(4, 4, 4)
    table[1, 2] = torch.tensor([8.0, 8.0 - gap, 0.0, 0.0])
    target = TableModel(table)
    target.dtype = dtype
    found = judge(target, [3, 1], [2, other, 3], [2, 0, 0])
    assert found["position"] == 1 and found["is_tie"] is is_tie
    assert found["gap"] == pytest.approx(8.0 if other == 2 else gap)
    assert found["tolerance"] == (8 * TIE if dtype == torch.bfloat16 else None)


def test_an_output_that_just_ends_is_no_tie():
    target = TableModel(torch.zeros(4, 4, 4))
    target.dtype = torch.bfloat16
    assert judge(target, [3, 1], [2, 0], [2, 0, 1]) == {
        "position": 2, "gap": None, "tolerance": None, "is_tie": False,
    }  # fmt: skip


def test_zero_bubble_share():
    """10 tokens after the first in 1 s of ar; 3 forwards after the first in 0.5 s of sps."""
    times = {"seconds": 1.2, "time_to_first_token": 0.2, "host_seconds": 0.0}
    ar = times | {"rounds": 11, "target_forwards": 11, "committed": 11}
    sps = times | {"seconds": 0.7, "rounds": 4, "target_forwards": 4, "committed": 10}
    sps |= {"host_seconds": 0.002}
    keys = {"temperature": 0.0, "prompt": 0}
    named = {"ar": ar, "sps": sps, "hf": {}}
    runs = [keys | {"method": name, "counters": counters} for name, counters in named.items()]
    first, second = e2e._summary(runs)
    assert first["zero_bubble_share"] == pytest.approx(1.0)
    assert first["host_seconds_per_round"] is None
    assert second["ar_forward_seconds"] == pytest.approx(0.1)
    assert second["zero_bubble_tokens_per_second"] == pytest.approx(2.5 / 0.1)
    assert second["zero_bubble_share"] == pytest.approx(0.6)
    assert second["host_seconds_per_round"] == pytest.approx(0.0005)
    assert e2e._summary(runs[1:]) == []


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--device", "cuda"], ["cuda", "no CUDA device", "cpu"]),
        (["--device", "tpu"], ["tpu", "cuda:N"]),
        (["--inflate", "68m", "7b"], ["68m", "layers 2", "8"]),
        (["--inflate", "7b", "9b"], ["9b", "13b"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_e2e_refuses_what_it_cannot_do(monkeypatch, capsys, argv: list[str], named: list[str]):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["e2e.py", "--out", "unused.json", *argv])
    with pytest.raises(SystemExit) as caught:
        e2e.main()
    message = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and all(part in message for part in named)


def test_markers_are_filled_and_stay(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    (tmp_path / "some.json").write_text(json.dumps(synthetic_result()))
    text = "before\n<!-- results: some -->\nold\n<!-- /results -->\nafter\n"
    once = report.filled(text)
    assert "old" not in once and "| `sps` |" in once
    assert once.startswith("before\n") and once.endswith("after\n")
    assert report.filled(once) == once


def test_picture_keeps_every_character():
    shown = [("chain", "a" * 100 + "\n"), ("bonus", "  <b>&\n\n"), ("plain", "end")]
    lines = list(show_picture.wrap(shown))
    assert ["".join(text for _, text in line) for line in lines] == [
        "a" * 88, "a" * 12, "  <b>&", "", "end",
    ]  # fmt: skip
    assert "&lt;b&gt;&amp;" in show_picture.svg(lines)


@pytest.fixture(scope="module")
def e2e_result(tmp_path_factory) -> dict:
    """A short run of e2e.py on a tiny random pair."""
    folder = tmp_path_factory.mktemp("e2e")
    target, draft = save_pair(folder)
    out = folder / "out.json"
    argv = ["--target", target, "--draft", draft, "--out", out, "--n", "2"]
    argv += ["--max-new-tokens", "12", "--gamma", "2", "4", "--peers", "hf", "hf-assisted"]
    done = subprocess.run(
        [sys.executable, BENCH / "e2e.py", *map(str, argv)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_e2e_measures_every_combination_once(e2e_result):
    keys = [(run["temperature"], run["prompt"], run["method"]) for run in e2e_result["runs"]]
    assert len(keys) == len(set(keys)) == 2 * 2 * 7
    methods = {method for _, _, method in keys}
    assert methods == {"ar", "hf", "hf-assisted"} | {
        f"{policy} gamma={gamma}" for policy in ("sps", "specbranch") for gamma in (2, 4)
    }
    assert all(run["new_tokens"] == 12 for run in e2e_result["runs"])


def test_e2e_checks_itself_and_says_where_it_ran(e2e_result):
    assert e2e_result["differs_from_ar"] == []
    assert e2e_result["device"]["cpu"] and e2e_result["device"]["cores"] >= 1
    assert e2e_result["versions"]["torch"] and e2e_result["command"].startswith("python bench/")
    assert report.tables(e2e_result).count("| `ar` |") == 2


@pytest.fixture(scope="module")
def inflated_result(tmp_path_factory) -> dict:
    """A short run on an inflated pair, in this process: it has imported what is slow to import."""
    folder = tmp_path_factory.mktemp("inflated")
    target, draft = save_pair(folder)
    out = folder / "out.json"
    argv = ["--target", target, "--draft", draft, "--out", out, "--inflate", "tiny", "tiny"]
    argv += ["--n", "1", "--max-new-tokens", "6", "--temperatures", "0"]
    argv += ["--policies", "ar", "specbranch", "--peers", "hf", "hf-assisted"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["e2e.py", *map(str, argv)])
        assert e2e.main() == 0
    return json.loads(out.read_text())


def test_e2e_inflated_pair(inflated_result):
    sizes = inflated_result["inflated"]["target"]
    assert sizes["shape"] == "tiny" and sizes["hidden"] == 288 and sizes["vocab"] == 1100
    assert {run["method"] for run in inflated_result["runs"]} == {
        "ar", "specbranch", "hf", "hf-assisted",
    }  # fmt: skip
    assert inflated_result["differs_from_ar"] == []  # the peers have the same weights too
    table = report.tables(inflated_result)
    assert "**Inflated pair**" in table and cells(table, "ar")[-1] == "1.00"
