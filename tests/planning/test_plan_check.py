"""bench/plan_check.py: what it predicts and what it measures are about the same requests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import plan_check
import pytest
from planning.pairs import tables

from specbranch import SamplingParams
from specbranch.planning import record_traces
from specbranch.session import Settings

CHOSEN = [
    plan_check.Method("ar", Settings(), True),
    plan_check.Method("sps", Settings(gamma=3), True),
    plan_check.Method("specbranch", Settings(gamma=2), False),
]


def test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_check, "methods", lambda verify: CHOSEN)
    monkeypatch.setattr(sys, "argv", ["plan_check.py", "--out", "x", "--repeats", "2"])
    args, pair, prompts = plan_check._arguments(), tables(2), [[1, 2, 3], [4, 5]]
    params = SamplingParams(max_new_tokens=20)
    hardware, runs = plan_check._measure(args, *pair, prompts, params)
    rows = plan_check._rows(CHOSEN, record_traces(*pair, prompts, params), hardware, runs)
    assert [row["method"] for row in rows] == [method.name for method in CHOSEN]
    assert rows[0]["predicted_speedup"] == rows[0]["measured_speedup"] == 1.0
    for row in rows:
        assert row["predicted_tokens_per_round"] == row["measured"]["tokens_per_round"]
        assert row["predicted_over_measured"] > 0
    assert {len(repeats) for by_prompt in runs.values() for repeats in by_prompt.values()} == {2}


def test_every_method_can_be_replayed() -> None:
    names = [method.name for method in plan_check.methods("rejection")]
    assert names[0].startswith("ar ") and len(set(names)) == len(names)


def test_the_committed_result() -> None:
    """If there is one, it says how far off it was."""
    path = Path(plan_check.__file__).parent / "results" / "plan.json"
    if not path.exists():
        pytest.skip("no result is committed")
    result = json.loads(path.read_text(encoding="utf-8"))
    worst = max(abs(row["predicted_over_measured"] - 1.0) for row in result["methods"])
    assert result["worst"] == pytest.approx(worst)
    assert result["kind"] == "plan" and not result["uncommitted_changes"]
