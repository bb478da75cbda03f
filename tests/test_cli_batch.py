"""``specbranch generate --prompts``: what it prints is what each prompt gives by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli import pair, run, run_json  # noqa: F401 - a fixture

from specbranch.cli import EXIT_ERROR, EXIT_INTERRUPTED
from specbranch.engine import Engine

PROMPTS = ["def f(x):", "import os", "#"]
FLAGS = ["--max-new-tokens", "12", "--temperature", "0.9", "--seed", "3"]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(PROMPTS) + "\n", encoding="utf-8")
    return str(path)


def test_json_lines_are_those_of_each_prompt(capsys, pair, file, tmp_path):  # noqa: F811
    alone = [run_json(capsys, "generate", text, *pair, *FLAGS) for text in PROMPTS]
    lines = tmp_path / "prompts.jsonl"
    lines.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    for source in (file, str(lines)):
        argv = ["generate", "--prompts", source, "--batch", "2", *pair, *FLAGS, "--json"]
        code, out, err = run(capsys, *argv)
        assert (code, err) == (0, "")
        found = [json.loads(line) for line in out.splitlines()]
        assert [each["prompt"] for each in found] == [0, 1, 2]
        for name in ("text", "tokens", "origins", "finish_reason"):
            assert [each[name] for each in found] == [each[name] for each in alone]


def test_a_file_named_as_a_set_of_prompts(capsys, pair, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    Path("humaneval").write_text("import os\n", encoding="utf-8")
    argv = ["generate", "--prompts", "humaneval", *pair, "--max-new-tokens", "2", "--json"]
    code, out, _ = run(capsys, *argv)
    assert code == 0 and [json.loads(line)["prompt"] for line in out.splitlines()] == [0]


def test_texts_and_statistics(capsys, pair, file):  # noqa: F811
    argv = ["generate", "--prompts", file, *pair, "--max-new-tokens", "5"]
    code, out, err = run(capsys, *argv, "--stats")
    assert code == 0 and [f"=== {idx} (length)" in out for idx in range(3)] == [True] * 3
    assert err.startswith("15 tokens of 3 prompts in ") and "target forwards for " in err


BAD = [
    (["x", "--prompts", "FILE"], "give one of PROMPT, --file F and --prompts F"),
    ([], "give one of PROMPT, --file F and --prompts F"),
    (["--prompts", "nowhere"], "--prompts was 'nowhere'; it must be a file"),
    (["x", "--batch", "2"], "--batch was given without --prompts"),
    (["--prompts", "FILE", "--batch", "0"], "--batch was 0; it must be at least 1"),
    (["--prompts", "FILE", "--show"], "--show was given with --prompts"),
    (["--prompts", "FILE", "--policy", "auto"], "policy was 'auto'"),
    (["--prompts", "FILE", "--max-new-tokens", "5000"], "prompts[0]: max_new_tokens was 5000"),
]


@pytest.mark.parametrize(("argv", "message"), BAD)
def test_bad_flags(capsys, pair, file, argv, message):  # noqa: F811
    given = [file if each == "FILE" else each for each in argv]
    code, out, err = run(capsys, "generate", *given, *pair)
    assert (code, out) == (EXIT_ERROR, "") and message in err and err.count("\n") == 1


def test_an_interrupt_prints_what_there_is(capsys, pair, file, monkeypatch):  # noqa: F811
    right, rounds = Engine._step, []

    def step(self, work):
        rounds.append(work)
        if len(rounds) == 3:
            raise KeyboardInterrupt
        return right(self, work)

    monkeypatch.setattr(Engine, "_step", step)
    code, out, _ = run(capsys, "generate", "--prompts", file, *pair, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == EXIT_INTERRUPTED
    assert [each["finish_reason"] for each in found] == ["cancelled"] * 3
    assert all(each["tokens"] for each in found)
