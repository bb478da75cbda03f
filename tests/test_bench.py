"""The benchmark scripts: tables say what result files say; e2e.py measures what it claims."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny_checkpoint import save_pair

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
