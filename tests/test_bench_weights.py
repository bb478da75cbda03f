"""``bench/weights.py``: a short run; docs/weights.md has the figures of the result file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import weights

from specbranch import _C
from specbranch.models.linear import Int8Linear
from specbranch.session import Chain, Session

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "results" / "weights.json"


def test_three_kinds_of_one_model() -> None:
    models = weights.three("demo")
    kinds = {kind: model.layers[0].qkv.weight.dtype for kind, model in models.items()}
    assert kinds == {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
    assert isinstance(models["int8"].head, Int8Linear)
    sizes = {kind: weights.matrix_bytes(model) for kind, model in models.items()}
    assert sizes["float32"] == 2 * sizes["bfloat16"]
    assert 0.25 * sizes["float32"] < sizes["int8"] < 0.26 * sizes["float32"]


def test_a_short_run(tmp_path: Path) -> None:
    out = tmp_path / "weights.json"
    argv = ["--models", "demo", "--rows", "1", "2", "--repeat", "1", "--n", "1"]
    argv += ["--max-new-tokens", "8", "--out", str(out)]
    command = [sys.executable, str(ROOT / "bench" / "weights.py"), *argv]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["kind"] == "weights" and found["commit"] and found["settings"]["threads"] == 1
    assert [row["tokens"] for row in found["forwards"]] == [1, 2]
    for row in found["forwards"]:
        assert set(row["milliseconds"]) == set(weights.KINDS)
        assert all(value > 0 for value in row["milliseconds"].values())
        assert row["faster_than_float32"]["float32"] == 1
    drafts = {row["draft"]: row["acceptance_rate"] for row in found["drafts"]}
    assert drafts["none (ar)"] is None and drafts["the target's int8 copy"] > 0.8


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_measured_has_so_many_threads(
    count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The forwards, and the engines of the drafts, which set their own."""
    seen: list[int] = []

    def see(*_: object) -> list[dict[str, object]]:
        seen.append(_C.limit_threads(0))
        _C.limit_threads(seen[-1])
        return []

    right = Session.draft_chain

    def chain(self: Session, *args: float) -> Chain:
        see()
        return right(self, *args)

    monkeypatch.setattr(weights, "forwards", see)
    monkeypatch.setattr(Session, "draft_chain", chain)
    threads = torch.get_num_threads()
    argv = ["weights.py", "--models", "demo", "--n", "1", "--max-new-tokens", "4"]
    monkeypatch.setattr(sys, "argv", [*argv, "--threads", str(count)])
    try:
        assert weights.main() == 0
    finally:
        torch.set_num_threads(threads)
    assert len(seen) > 3 and set(seen) == {count}


def test_a_draft_that_changes_the_output_ends_the_run() -> None:
    class Run:
        def __init__(self, tokens: list[int]) -> None:
            self.tokens = tokens

    with pytest.raises(RuntimeError, match="not the target's own"):
        weights._drafted("x", [Run([1, 2])], [Run([1, 3])], weights._parser().parse_args([]))


def test_the_page_has_the_figures_of_the_result_file() -> None:
    found = json.loads(RESULT.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    for table in weights.tables(found).split("\n\n"):
        assert table in page
    assert found["command"] in page and found["commit"][:10] in page
    assert found["uncommitted_changes"] is False
