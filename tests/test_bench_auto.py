"""``bench/auto.py`` and its tables, over few tokens of the demo pair."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import Mock

import auto
import numpy as np
import pytest
import report_auto
import worse_draft

from specbranch.comparison.measure import Contestant


def run_script(monkeypatch: pytest.MonkeyPatch, out: Path, *more: str) -> int:
    argv = ["auto.py", "--out", out, "--n", 2, "--passes", 2]
    argv += ["--max-new-tokens", 8, "--autos", 2, "--fixed", "sps:gamma=2"]
    argv += ["--temperatures", 0, 1, *more]
    monkeypatch.setattr(sys, "argv", [str(each) for each in argv])
    return auto.main()


def test_result_and_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "auto.json"
    assert run_script(monkeypatch, out) == 0
    result = json.loads(out.read_text())
    assert report_auto.is_ours(result)
    assert [run["temperature"] for run in result["runs"]] == [0, 1]
    for run in result["runs"]:
        assert set(run["seconds"]) == {"ar", "ar again", "sps:gamma=2", "auto 1", "auto 2"}
        assert all(len(seconds) == 4 for seconds in run["seconds"].values())
        assert run["tokens"] <= 32 and run["different"] == []
        speed = run["tokens"] / sum(run["seconds"]["auto 1"])
        assert run["tokens_per_second"]["auto 1"] == pytest.approx(speed, rel=1e-3)
    assert run_script(monkeypatch, tmp_path / "shorter.json", "--no-control") == 0
    (shorter, _) = json.loads((tmp_path / "shorter.json").read_text())["runs"]
    assert set(shorter["seconds"]) == {"ar", "sps:gamma=2", "auto 1", "auto 2"}
    text = report_auto.tables(result)
    assert text.count("| `auto 2` |") == 2 and "2 humaneval prompts, gone through 2 times" in text


def test_draft_with_noise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    noisy = [worse_draft.noisy_draft(0.5)]
    monkeypatch.setattr(worse_draft, "noisy_draft", lambda sigma: noisy[sigma != 0.5])
    made = Mock(wraps=Contestant)
    monkeypatch.setattr(auto, "Contestant", made)
    out = tmp_path / "auto.json"
    assert run_script(monkeypatch, out, "--sigma", "0.5") == 0
    drafts = [call.args[2] for call in made.call_args_list]
    assert len(drafts) == 10 and all(draft is noisy[0] for draft in drafts)
    assert "; demo pair, noise of 0.5 sigma in the draft." in report_auto.tables(
        json.loads(out.read_text())
    )


def test_other_tokens_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(auto.Contestant, "run", spoilt(auto.Contestant.run))
    out = tmp_path / "auto.json"
    assert run_script(monkeypatch, out) == 1
    result = json.loads(out.read_text())
    assert result["runs"][0]["different"] == ["auto 2"]
    assert "**TOKENS OF auto 2 ARE NOT THOSE OF `ar`.**" in report_auto.tables(result)


def spoilt(run):
    """``Contestant.run`` that loses a token of one method."""

    def other(self, *args, **kwargs):
        found = run(self, *args, **kwargs)
        if self.method.name == "auto 2":
            found.tokens.pop()
        return found

    return other


def test_fixed_choices_are_compared_with_the_fastest_of_them() -> None:
    run = {
        "temperature": 0.0,
        "tokens": 100,
        "different": [],
        "tokens_per_second": {"ar": 10.0, "sps": 20.0, "auto 1": 25.0},
        "seconds": {"ar": [5.0, 5.0], "sps": [2.5, 2.5], "auto 1": [2.0, 2.0]},
    }
    lines = report_auto.table(run).splitlines()
    assert "| `sps` | 20.0 | 2.000 | 1.000 |" in lines
    assert "| `auto 1` | 25.0 | 2.500 | 1.250 ± 0.000 |" in lines


def test_the_standard_error_is_that_of_many_runs() -> None:
    """Of runs over fresh prompts, each with a cost of its own and noise: how far ratios spread."""
    rng = np.random.default_rng()
    shown, ratios = [], []
    for _ in range(400):
        cost = rng.uniform(1.0, 3.0, 200)
        both = [(cost * rng.lognormal(0.0, 0.1, 200) * scale).tolist() for scale in (1.0, 1.1)]
        run = {
            "temperature": 0.0,
            "tokens": 1000,
            "different": [],
            "tokens_per_second": {"ar": 1000 / sum(both[0]), "auto 1": 1000 / sum(both[1])},
            "seconds": {"ar": both[0], "auto 1": both[1]},
        }
        text = report_auto.table(run).splitlines()[-1]
        ratio, error = text.split(" | ")[-1].strip(" |").split(" ± ")
        ratios.append(float(ratio))
        shown.append(float(error))
    assert np.mean(shown) == pytest.approx(np.std(ratios), rel=0.2)


def test_every_pass_is_held_against_the_choice_that_is_best_in_all_of_them() -> None:
    run = {
        "temperature": 0.0,
        "passes": 2,
        "tokens": 100,
        "different": [],
        "tokens_per_second": {"ar": 10.0, "ar again": 25.0, "sps": 20.0, "auto 1": 16.0},
        "seconds": {
            "ar": [2.0, 2.0, 2.0, 4.0],  # the best one in the first pass
            "ar again": [1.0, 1.0, 1.0, 1.0],  # takes no part
            "sps": [3.0, 1.0, 0.5, 0.5],
            "auto 1": [4.0, 1.0, 1.0, 0.25],
        },
    }
    lines = report_auto.table(run).splitlines()
    # Prompts are off by -0.2, 0.2, -0.3 and 0.3 seconds: twice their deviation, over 6.25 seconds.
    assert "| `auto 1` | 16.0 | 1.600 | 0.800 ± 0.094 | 0.800, 0.800 |" in lines
    assert "| `ar` | 10.0 | 1.000 | 0.500 ± 0.294 | 1.000, 0.167 |" in lines
