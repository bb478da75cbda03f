"""``specbranch bench`` on the demo pair, a few tokens at a time."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from specbranch.cli import EXIT_ERROR, main
from specbranch.comparison import DEFAULT_METHODS, Comparison
from specbranch.policies import POLICIES
from specbranch.policies.sps import SpeculativeSampling
from specbranch.session import Committed, Session

METHODS = ["ar", *DEFAULT_METHODS[1:], "sps:gamma=2", "specbranch+hrad"]
PNG = b"\x89PNG\r\n\x1a\n"
PICTURES = ["acceptance_by_position", "accepted_length", "rollback", "speedup", "timeline"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> str:
    """A file of two prompts."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [json.dumps({"prompt": text}) for text in ("def add(a, b):", "import os\n", "x = [")]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def run(capsys, *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``specbranch bench``."""
    code = main(["bench", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def written(prompts, tmp_path_factory) -> tuple[Path, str]:
    """The folder and the table of one run of everything."""
    pytest.importorskip("matplotlib")
    out = tmp_path_factory.mktemp("bench") / "new" / "folder"
    argv = ["--policies", *DEFAULT_METHODS[1:], "sps:gamma=2", "--hrad", "demo", "--n", "2"]
    argv += ["--prompts", prompts, "--max-new-tokens", "16", "--threads", "1", "--out", str(out)]
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        assert main(["bench", *argv]) == 0
    return out, stdout.getvalue()


def test_one_table_and_what_was_run(written):
    _, text = written
    table = text.split("\n\n")[0].splitlines()[2:]
    assert [line.split()[0] for line in table] == METHODS
    for said in (
        "2 of prompts.jsonl", "at most 16 new tokens, end-of-sequence honoured; greedy, seed 0",
        "sps:gamma=2: gamma 2", "specbranch+hrad: gamma 4", "H-RAD", "commit ", "torch ",
        "demo/target on cpu in float32", "command: specbranch bench --policies",
        "greedy output equals ar, token for token, in all 18 requests",
    ):  # fmt: skip
        assert said in text, said


def test_files_hold_everything(written):
    out, text = written
    names = {"bench.json", "bench.csv", "bench.md", *(f"{name}.png" for name in PICTURES)}
    assert {path.name for path in out.iterdir()} == names
    found = Comparison.load(out / "bench.json")
    assert len(found.runs) == 2 * len(METHODS)
    assert {len(run.tokens) for run in found.runs} == {16}
    # Times are rounded in the file; counts and settings below the figures are the same.
    assert found.table().split("\n\n")[2:] == text.split("\n\n")[2:]
    with (out / "bench.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["prompt"]) for row in rows] == [
        (name, prompt) for name in METHODS for prompt in "01"
    ]
    for row in rows:
        method = next(each for each in found.methods if each.name == row["method"])
        assert float(row["speedup"]) == pytest.approx(
            found.speedups(method)[int(row["prompt"])], abs=1e-3
        )
        assert row["gamma"] == str(method.settings.get("gamma", ""))
    markdown = (out / "bench.md").read_text(encoding="utf-8")
    assert sum(line.startswith("| `") for line in markdown.splitlines()) == len(METHODS)
    assert "- command: specbranch bench" in markdown and "![timeline](timeline.png)" in markdown


def test_pictures_are_pictures_and_can_be_drawn_again(written, tmp_path):
    out, _ = written
    for name in PICTURES:
        data = (out / f"{name}.png").read_bytes()
        assert data.startswith(PNG) and len(data) > 10_000, name
    from specbranch.comparison.timeline_plot import timeline_figure

    figure = timeline_figure(Comparison.load(out / "bench.json"))
    drafting = [axes for axes in figure.axes if axes.containers]
    assert len(drafting) == 7, "ar, lookahead and ngram have no draft"
    for axes in drafting:
        labels = {container.get_label() for container in axes.containers}
        assert {"target forward", "target verify"} <= labels
        assert labels & {"draft chain", "draft branches"}
        assert len(axes.texts) <= 7


def test_without_matplotlib_the_rest_is_written(capsys, monkeypatch, prompts, tmp_path):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    argv = ["--policies", "ar", "--prompts", prompts, "--n", "1", "--max-new-tokens", "4"]
    (tmp_path / "timeline.png").write_bytes(b"of an earlier run")
    code, _, err = run(capsys, *argv, "--out", str(tmp_path))
    assert code == 0
    assert "no pictures will be drawn, because matplotlib is not installed" in err
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.csv", "bench.md"}
    assert "matplotlib" not in run(capsys, *argv)[2], "nothing was to be drawn"


def never(options: object) -> NoReturn:
    """In the place of what loads models."""
    raise AssertionError("it has begun")


def test_a_bad_out_is_said_before_anything_runs(capsys, monkeypatch):
    monkeypatch.setattr("specbranch.cli.bench.load_models", never)
    code, out, err = run(capsys, "--policies", "ar", "--out", f"{__file__}/new")
    assert (code, out) == (EXIT_ERROR, "")
    assert f"--out was '{__file__}/new'; it must be where files can be written" in err


def test_files_are_written_before_the_table(capsys, monkeypatch, prompts, tmp_path):
    """What reads the table may have gone; hours of runs are not to go with it."""

    def broken(comparison: Comparison) -> str:
        raise OSError("nobody reads this")

    monkeypatch.setattr(Comparison, "table", broken)
    argv = ["--policies", "sps", "--layer-skip", "1", "--gamma", "1", "--prompts", prompts]
    code, _, err = run(capsys, *argv, "--n", "1", "--max-new-tokens", "4", "--out", str(tmp_path))
    assert code == EXIT_ERROR and "nobody reads this" in err
    models = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["models"]
    names = [model["name"] for model in models.values()]
    assert names == ["demo/target", "demo/target, first 1 layers"]


class Broken(SpeculativeSampling):
    """Forgets the residual: what was rejected is committed all the same."""

    def round(self, session: Session) -> Committed:
        committed = super().round(session)
        if session.length > 12:
            committed.tokens[-1] = 5
        return committed


def test_a_broken_policy_ends_with_exit_code_1(capsys, monkeypatch, prompts):
    monkeypatch.setitem(POLICIES, "sps", lambda predictor: Broken())
    argv = ["--prompts", prompts, "--n", "1", "--max-new-tokens", "16", "--threads", "1"]
    code, out, err = run(capsys, "--policies", "pearl", "sps:gamma=2", *argv)
    assert code == 1
    assert "bench: NOT LOSSLESS: sps:gamma=2, prompt 0, position " in err
    assert "GREEDY OUTPUT DIFFERS from ar in 1 of 2 requests" in out and "pearl, prompt" not in out
    assert "ar was added to --policies" in err
    # At a temperature nothing is claimed of rejection sampling, and the table says so.
    argv += ["--temperature", "1", "--policies", "sps"]
    code, out, _ = run(capsys, *argv)
    assert code == 0 and "no equality of outputs is claimed or checked for sps" in out
    code, _, err = run(capsys, *argv, "--verify", "coupled")
    assert code == 1 and "NOT LOSSLESS: sps, prompt 0" in err


BAD = [
    (["--policies", "magic"], "--policies: 'magic' is no method"),
    (["--policies", "sps:gamma=x"], "--policies: in 'sps:gamma=x' gamma was 'x'"),
    (["--policies", "ngram:k_max=2"], "'k_max=2'"),
    (["--policies", "sps", "sps"], "--policies: 'sps' was given twice"),
    (["--policies", "ar", "--gamma", "3"], "--gamma was 3; none of the methods looks at it"),
    (["--policies", "specbranch+hrad"], "needs a predictor"),
    (["--gamma", "0"], "--gamma was 0"),
    (["--epsilon", "2"], "--epsilon was 2"),
    (["--draft-stage", "both"], "--draft-stage"),
    (["--verify", "maybe"], "--verify"),
    (["--temperature", "-1"], "--temperature was -1"),
    (["--max-new-tokens", "0"], "--max-new-tokens was 0"),
    (["--seed", "-1"], "--seed was -1"),
    (["--n", "0"], "--n was 0"),
    (["--repeat", "0"], "--repeat was 0"),
    (["--threads", "0"], "--threads was 0"),
    (["--prompts", "/no/such/file"], "--prompts was '/no/such/file'"),
    (["--hrad", "/no/such/file"], "--hrad was '/no/such/file'"),
    (["--out", __file__], "--out was"),
    (["--draft", "."], "--draft was given without --target"),
    (["--target", "."], "sps specbranch pearl adaedl fanout: a draft model is needed"),
    (["--target", "/no/such/dir", "--policies", "ar"], "--target was '/no/such/dir'"),
    (["--policies", "ar", "--draft-device", "cpu"], "--draft-device"),
    (["--policies", "ar", "--layer-skip", "1"], "--layer-skip was given, and none of"),
    (["--layer-skip", "0"], "--layer-skip was 0"),
    (["--layer-skip", "1", "--target", ".", "--draft", "."], "--layer-skip and --draft exclude"),
    (["--device", "toaster", "--prompts", __file__], "--device was 'toaster'"),
    (["--no-such-flag"], "--no-such-flag"),
]


@pytest.mark.parametrize(("argv", "said"), BAD, ids=[" ".join(argv[:3]) for argv, _ in BAD])
def test_bad_flags_are_one_line_and_exit_code_2(capsys, argv, said):
    code, out, err = run(capsys, *argv)
    assert (code, out) == (EXIT_ERROR, "")
    assert err.startswith("specbranch: error: ") and err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize(
    ("content", "argv", "said"),
    [
        ('{"text": "a"}\n', [], "--prompts: "),
        ('{"prompt": "a"}\n', ["--max-new-tokens", "100000"], "--max-new-tokens was 100000"),
        ('{"prompt": ""}\n', [], "prompts[0] was empty"),
    ],
)
def test_bad_prompts_are_said_before_anything_runs(capsys, tmp_path, content, argv, said):
    path = tmp_path / "prompts.jsonl"
    path.write_text(content, encoding="utf-8")
    code, out, err = run(capsys, "--policies", "ar", "--prompts", str(path), *argv)
    assert (code, out) == (EXIT_ERROR, "")
    last = err.splitlines()[-1]
    assert last.startswith("specbranch: error: ") and said in last


def test_help_and_bad_flags_import_neither_torch_nor_matplotlib():
    script = (
        "import sys\nfrom specbranch.cli import main\n"
        "for argv in (['bench', '--help'], ['bench', '--policies', 'sps:gamma=0']):\n"
        "    try: main(argv)\n    except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ms/token is the gap between the outputs of two rounds" in done.stdout
