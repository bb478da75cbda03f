"""``bench/batch.py``: a short run, and that it sees an output that depends on the batch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import batch
import pytest

from specbranch.batching import hub
from specbranch.models.protocol import ForwardOutput

ARGV = ["--policies", "ar", "sps", "--n", "3", "--prompts", "stdlib", "--prompt-tokens", "9"]
SHORT = ["--max-new-tokens", "6", "--repeats", "1", "--sizes", "1", "2"]


def run(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["batch.py", *argv])
    return batch.main()


def test_a_short_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "batch.json"
    assert run(monkeypatch, *ARGV, *SHORT, "--out", str(out)) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["kind"] == "batch" and found["inflated"] is None
    assert found["prompt_tokens"] == [9, 9, 9] and found["differs_from_alone"] == []
    cases = [(row["policy"], row["batch"]) for row in found["rows"]]
    assert cases == [(policy, size) for policy in ("ar", "sps") for size in (0, 1, 2)]
    for row in found["rows"]:
        assert 0 < row["prefill_seconds"] < row["seconds"]
        if row["policy"] == "ar" and row["batch"]:  # three requests of six tokens, two at a time
            assert row["target_forwards"] == {1: 18, 2: 12}[row["batch"]]
            assert row["target_rows"] == 18 / row["target_forwards"]
    table = capsys.readouterr().out
    assert table == batch.table(found) and "| `sps` | one by one | " in table


def test_a_row_that_depends_on_others_is_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = hub.forward_batch

    def crossed(*args: Any, **kwargs: Any) -> list[ForwardOutput]:
        return right(*args, **kwargs)[::-1]

    monkeypatch.setattr(hub, "forward_batch", crossed)
    assert run(monkeypatch, "--policies", "ar", *ARGV[3:], *SHORT) == 1
    assert "NOT THE OUTPUT IT HAS ALONE: ar, batch 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--sizes", "0"], "--sizes was 0; it must be at least 1"),
        (["--policies", "none"], "policy was 'none'; it must be one of ar"),
        (["--prompts", "nowhere"], "nowhere"),
    ],
)
def test_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, *argv)
    assert said in capsys.readouterr().err
