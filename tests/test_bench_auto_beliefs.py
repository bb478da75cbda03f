"""``bench/auto_beliefs.py``, over few tokens of the demo pair."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import auto_beliefs
import pytest
from auto_beliefs import REFERENCE, Belief

from specbranch.comparison.runs import Run
from specbranch.tuning import Arm

FIXED = tuple(auto_beliefs.FIXED.values())


def run_of(tokens: int, rounds: int, seconds: float) -> Run:
    """So many seconds after the prompt was processed."""
    return Run("", 0, 0, [0] * tokens, seconds + 5.0, 5.0, [], {}, {"rounds": rounds})


def test_what_is_believed_is_compared_with_what_is_so() -> None:
    """An arm that is believed to bring 10 % more, and to take 20 % longer, than it does."""
    runs = {arm: [run_of(100, 40 + 2 * arm.gamma, 1.0 + arm.gamma)] * 3 for arm in FIXED}
    tokens = {arm: math.log(100 / (40 + 2 * arm.gamma)) for arm in FIXED}
    seconds = {arm: math.log((1.0 + arm.gamma) / (40 + 2 * arm.gamma)) - 7.0 for arm in FIXED}
    wrong = Arm("sps", 4)
    tokens[wrong] += math.log(1.1)
    seconds[wrong] += math.log(1.2)
    found = auto_beliefs._errors(Belief(wrong, tokens, seconds), runs, 1)
    assert found["best"] == "sps 4"
    assert found["tokens"].pop("sps 4") == pytest.approx(math.log(1.1), abs=1e-3)
    assert found["seconds"].pop("sps 4") == pytest.approx(math.log(1.2), abs=1e-3)
    others = {auto_beliefs._name(arm) for arm in FIXED} - {"sps 4", auto_beliefs._name(REFERENCE)}
    for errors in (found["tokens"], found["seconds"]):
        assert errors == dict.fromkeys(others, 0.0)


def test_tokens_are_those_of_the_prompts_around_and_seconds_of_all() -> None:
    runs = {arm: [run_of(90, 30, 1.0)] * 100 for arm in FIXED}
    runs[REFERENCE] = [run_of(60 if at < 30 else 120, 30, 1.0) for at in range(100)]
    believed = Belief(REFERENCE, dict.fromkeys(FIXED, 0.0), dict.fromkeys(FIXED, 0.0))
    early, late = (auto_beliefs._errors(believed, runs, at) for at in (5, 80))
    assert early["tokens"]["ar"] == pytest.approx(math.log(60 / 90), abs=1e-3)
    assert late["tokens"]["ar"] == pytest.approx(math.log(120 / 90), abs=1e-3)
    assert early["seconds"] == late["seconds"]


def test_result_and_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "beliefs.json"
    argv = ["auto_beliefs.py", "--out", out, "--n", 6, "--max-new-tokens", 8, "--autos", 2]
    monkeypatch.setattr(sys, "argv", [str(each) for each in argv])
    assert auto_beliefs.main() == 0
    found = json.loads(out.read_text())["found"]
    assert [(each["prompt"], each["engine"]) for each in found] == [
        (prompt, engine) for prompt in (5, 6) for engine in ("auto 1", "auto 2")
    ]
    assert all(len(each["tokens"]) == len(each["seconds"]) == 5 for each in found)
    assert capsys.readouterr().out.count("\n") == 2 + 4
