"""bench/ablation.py on few short prompts, the tables made of it, and the worse draft."""

from __future__ import annotations

import json
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import ablation  # noqa: E402
import report_ablation  # noqa: E402
from worse_draft import noisy_draft, noisy_tensors  # noqa: E402

from specbranch.pair import DEMO_DIR  # noqa: E402

STUDIES = {"methods", "best", "frontier", "epsilon", "k_max", "layers"}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("ablation") / "ablation.json"
    arguments = (
        "--prompts humaneval --temperatures 0 --n 2 --max-new-tokens 32 "
        "--train-prompts 3 --layers 2 --all-layers 1 2 --measure 2"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "GAMMAS", (2, 4))
        patch.setattr(ablation, "EPSILONS", (0.2, 0.8))
        patch.setattr(ablation, "WIDTHS", (1, 4))
        patch.setattr(ablation, "TrainSettings", partial(ablation.TrainSettings, epochs=1))
        patch.setattr(sys, "argv", ["ablation.py", "--out", str(out), *arguments.split()])
        patch.chdir(BENCH.parent)
        assert ablation.main() == 0
    found: dict = json.loads(out.read_text(encoding="utf-8"))
    return found


def test_every_study_of_every_scene(result: dict) -> None:
    scenes = {(row["pair"], row["study"]) for row in result["rows"]}
    assert scenes == {(pair, study) for pair in ("aligned", "worse") for study in STUDIES}
    rates = {row["pair"]: row["acceptance_rate"] for row in result["acceptance"]}
    assert rates["worse"] < rates["aligned"]
    assert all(len(row["speedups"]) == 2 for row in result["measured"])


def test_the_best_is_the_best(result: dict) -> None:
    for row in result["rows"]:
        same = {key: row[key] for key in ("pair", "prompts", "policy", "draft_stage", "hrad")}
        if row["study"] == "frontier":
            (best,) = (
                each for each in result["rows"] if each["study"] == "best" and each | same == each
            )
            assert row["speedup"] <= best["speedup"]


def test_the_frontier_falls(result: dict) -> None:
    rows = [row for row in result["rows"] if row["study"] == "frontier"]
    for one, other in pairwise(rows):
        if all(one[key] == other[key] for key in ("pair", "policy", "draft_stage", "hrad")):
            assert other["RB"] < one["RB"] and other["speedup"] <= one["speedup"]


def test_the_tables(result: dict) -> None:
    text = report_ablation.tables(result)
    for word in ("`sps`", "`fanout serial`", "`specbranch serial + H-RAD`", "HumanEval, greedy"):
        assert word in text
    assert "nan" not in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    heads = [line.count("|") for line in text.splitlines() if line.startswith("| ---")]
    assert set(widths) == set(heads)


def test_the_worse_draft_differs_in_matrices_alone() -> None:
    folder = DEMO_DIR / "draft"
    plain, noisy, again = (noisy_tensors(folder, sigma) for sigma in (0.0, 0.25, 0.25))
    for name, weight in plain.items():
        assert torch.equal(noisy[name], again[name])
        difference = noisy[name] - weight
        if weight.dim() == 2:
            assert float(difference.std() / weight.std()) == pytest.approx(0.25, rel=0.05)
        else:
            assert not difference.any()
    assert noisy_draft(0.25).vocab_size == noisy_draft(0.0).vocab_size
