"""The command line, run in-process on a tiny random pair; one test starts a real process."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoint import save_pair

from specbranch import devices, load_model
from specbranch.cli import EXIT_ERROR, EXIT_INTERRUPTED, main, options
from specbranch.cli.show import COLOURS, MEANINGS, Colourer, runs, strip

STATS_KEYS = {
    "prompt_tokens", "new_tokens", "seconds", "prefill_seconds", "tokens_per_second",
    "time_to_first_token", "host_seconds", "target_seconds", "rounds", "target_forwards",
    "draft_forwards", "accepted", "M",
    "tokens_per_round", "drafted", "rolled_back", "RB", "pruned", "sibling_tokens",
    "branch_points", "branch_hits", "branch_hit_rate", "bubble", "acceptance_rate",
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> list[str]:
    """Flags that name a tiny random target and draft."""
    target, draft = save_pair(tmp_path_factory.mktemp("pair"))
    return ["--target", str(target), "--draft", str(draft)]


def run(capsys, *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    code = main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_json(capsys, *argv: str) -> dict:
    """The object that a successful ``--json`` run prints."""
    code, out, err = run(capsys, *argv, "--json")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    return json.loads(out)


# ---------------------------------------------------------------------------------- generate
def test_streams_the_text_that_json_reports(capsys, pair):
    argv = ["generate", "def f():", *pair, "--max-new-tokens", "40"]
    code, out, err = run(capsys, *argv)
    found = run_json(capsys, *argv)
    assert (code, err) == (0, "")
    assert out == found["text"]


def test_json_object_is_complete(capsys, pair):
    found = run_json(capsys, "generate", "abc", *pair, "--max-new-tokens", "17")
    assert set(found) == {"text", "tokens", "origins", "finish_reason", "stats"}
    assert len(found["tokens"]) == len(found["origins"]) == found["stats"]["new_tokens"] == 17
    assert set(found["origins"]) <= set(COLOURS)
    assert found["finish_reason"] == "length"
    assert set(found["stats"]) >= STATS_KEYS


@pytest.mark.parametrize(
    "flags",
    [
        ["--policy", "ar"],
        ["--policy", "sps", "--gamma", "3"],
        ["--policy", "specbranch", "--gamma", "2", "--k-max", "3", "--epsilon", "0.2"],
        ["--policy", "ngram", "--max-ngram", "2"],
        ["--policy", "lookahead", "--window", "3", "--k-max", "2"],
        ["--policy", "pearl", "--gamma", "4"],
        ["--policy", "adaedl", "--epsilon", "0.3"],
        ["--draft-stage", "serial"],
        ["--draft-stage", "overlap"],
        ["--verify", "coupled"],
        ["--device", "cpu", "--dtype", "float32"],
    ],
    ids=" ".join,
)
def test_method_flags_leave_greedy_text_alone(capsys, pair, flags):
    argv = ["generate", "x = [1, 2", *pair, "--max-new-tokens", "24"]
    assert run(capsys, *argv, *flags) == run(capsys, *argv, "--policy", "ar", "--dtype", "float32")


def test_sampling_flags_reach_the_engine(capsys, pair):
    argv = ["generate", "abc", *pair, "--max-new-tokens", "24", "--temperature", "1.5"]
    first = run_json(capsys, *argv, "--seed", "7")
    assert first["tokens"] == run_json(capsys, *argv, "--seed", "7")["tokens"]
    assert first["tokens"] != run_json(capsys, *argv, "--seed", "8")["tokens"]
    greedy = run_json(capsys, "generate", "abc", *pair, "--max-new-tokens", "24")["tokens"]
    for flags in (["--top-k", "1"], ["--top-p", "1e-6"], ["--min-p", "1"]):
        assert run_json(capsys, *argv, *flags)["tokens"] == greedy


def test_stop_may_be_repeated(capsys, pair):
    argv = ["generate", "abc", *pair, "--max-new-tokens", "40"]
    text = run_json(capsys, *argv)["text"]
    late, early = text[20:22], text[6:8]
    found = run_json(capsys, *argv, "--stop", late, "--stop", early)
    assert found["finish_reason"] == "stop"
    assert found["text"] == text[: min(text.index(late), text.index(early))]


def test_prompt_from_file_and_stdin(capsys, pair, tmp_path, monkeypatch):
    prompt = "naïve = 1\n"
    file = tmp_path / "prompt.txt"
    file.write_bytes(prompt.encode())
    argv = [*pair, "--max-new-tokens", "9"]
    expected = run(capsys, "generate", prompt, *argv)
    assert run(capsys, "generate", "--file", str(file), *argv) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(prompt.encode())))
    assert run(capsys, "generate", "-", *argv) == expected


def test_stats_go_to_stderr(capsys, pair):
    argv = ["generate", "abc", *pair, "--max-new-tokens", "9"]
    code, out, err = run(capsys, *argv, "--stats")
    assert code == 0
    assert "9 tokens" in err and "tokens/s" in err
    assert out == run(capsys, *argv)[1]


# -------------------------------------------------------------------------------------- show
def test_show_only_adds_colour(capsys, pair):
    argv = ["generate", "abc", *pair, "--max-new-tokens", "60", "--temperature", "1"]
    plain = run(capsys, *argv)[1]
    code, out, err = run(capsys, *argv, "--show")
    assert code == 0
    assert strip(out) == plain
    assert all(origin in COLOURS for origin, _ in runs(out)), "every character has a colour"
    assert err.count("\n") == 1 and all(name in err for name in MEANINGS)


class ByteDecoder:
    """A stream decoder whose tokens are single bytes of ``text``."""

    def __init__(self) -> None:
        self._held = b""

    def push(self, token: int) -> str:
        self._held += bytes([token])
        try:
            text, self._held = self._held.decode(), b""
        except UnicodeDecodeError:
            return ""
        return text


def test_a_character_takes_the_colour_of_the_token_that_completes_it():
    tokens = list("aé€".encode())  # 1 + 2 + 3 bytes
    origins = ["plain", "chain", "bonus", "chain", "branch", "recovered"]
    out = Colourer(ByteDecoder()).colour(tokens, origins, "aé€")
    assert list(runs(out)) == [("plain", "a"), ("bonus", "é"), ("recovered", "€")]


def test_text_may_lag_behind_its_tokens():
    colourer = Colourer(ByteDecoder())
    first = colourer.colour(list(b"ab"), ["chain", "bonus"], "")
    second = colourer.colour(list(b"c"), ["recovered"], "ab")
    last = colourer.colour([], [], "c")
    assert first == ""
    assert list(runs(second)) == [("chain", "a"), ("bonus", "b")]
    assert list(runs(last)) == [("recovered", "c")]


def test_combining_characters_stay_with_their_base():
    text = "e\u0301x"
    tokens = list(text.encode())
    out = Colourer(ByteDecoder()).colour(tokens, ["chain", "plain", "bonus", "bonus"], text)
    assert list(runs(out)) == [("chain", "e\u0301"), ("bonus", "x")]


# ------------------------------------------------------------------------------------ errors
BAD = [
    ([], "COMMAND"),
    (["frobnicate"], "frobnicate"),
    (["generate"], "PROMPT"),
    (["generate", "a", "--file", "b"], "--file"),
    (["generate", "--file", "/no/such/file"], "--file"),
    (["generate", "a", "--no-such-flag"], "--no-such-flag"),
    (["generate", "a", "--max-new", "3"], "--max-new"),
    (["generate", "a", "--policy", "magic"], "--policy"),
    (["generate", "a", "--gamma", "x"], "--gamma"),
    (["generate", "a", "--gamma", "0"], "--gamma was 0"),
    (["generate", "a", "--k-max", "0"], "--k-max was 0"),
    (["generate", "a", "--epsilon", "1.5"], "--epsilon was 1.5"),
    (["generate", "a", "--draft-stage", "both"], "--draft-stage"),
    (["generate", "a", "--verify", "maybe"], "--verify"),
    (["generate", "a", "--temperature", "-1"], "--temperature was -1"),
    (["generate", "a", "--temperature", "nan"], "--temperature was nan"),
    (["generate", "a", "--top-k", "-3"], "--top-k was -3"),
    (["generate", "a", "--top-p", "0"], "--top-p was 0"),
    (["generate", "a", "--top-p", "2"], "--top-p was 2"),
    (["generate", "a", "--min-p", "-0.1"], "--min-p was -0.1"),
    (["generate", "a", "--seed", "-1"], "--seed was -1"),
    (["generate", "a", "--max-new-tokens", "0"], "--max-new-tokens was 0"),
    (["generate", "a", "--stop", ""], "--stop"),
    (["generate", "a", "--dtype", "int3"], "--dtype"),
    (["generate", "a", "--draft", "."], "--draft"),
    (["generate", "a", "--target", "."], "--policy"),
    (["generate", "a", "--target", "/no/such/dir", "--policy", "ar"], "--target"),
    (["generate", "a", "--show", "--json"], "--show"),
    (["generate", "a", "--device", "toaster"], "--device"),
    (["generate", "a", "--device", "cuda:97"], "--device"),
    (["generate", "a", "--draft-device", "toaster"], "--draft-device was 'toaster'"),
    (["generate", "a", "--draft-device", "cpu", "--policy", "ar"], "--draft-device"),
    (["generate", "a", "--draft-sms", "0"], "--draft-sms was 0"),
    (["generate", "a", "--draft-sms", "8"], "--draft-sms was 8; it needs"),
    (["generate", "\udcff"], "UTF-8"),
    (["info", "extra"], "extra"),
]


@pytest.mark.parametrize(("argv", "named"), BAD, ids=[" ".join(map(ascii, a)) for a, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(capsys, argv, named):
    code, out, err = run(capsys, *argv)
    assert (code, out) == (EXIT_ERROR, "")
    assert err.startswith("specbranch: error: ") and err.count("\n") == 1
    assert named in err


#: What keeps CUDA from being used -> (device's problem, torch.version.cuda, whether torch can use
#: it, whether our kernels are built), and what the one line says of it.
NO_CUDA = {
    "no driver": (
        ("no NVIDIA driver was found", "13.0", False, True),
        "no NVIDIA driver was found",
    ),
    "no device": (("no CUDA device was found", "13.0", False, True), "no CUDA device was found"),
    "torch's CPU build": ((None, None, False, True), "is built without CUDA"),
    "old driver": ((None, "13.0", False, True), "cannot use the CUDA device"),
    "no nvcc": ((None, "13.0", True, False), "specbranch is built without its CUDA kernels"),
}


@pytest.mark.parametrize("case", NO_CUDA)
@pytest.mark.parametrize("flag", ["--device", "--draft-device"])
def test_why_there_is_no_cuda(capsys, monkeypatch, case, flag):
    (device, version, usable, built), said = NO_CUDA[case]
    monkeypatch.setattr(devices, "_why_no_device", lambda: device)
    monkeypatch.setattr(devices.torch.version, "cuda", version)
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: usable)
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices.ops, "backends", lambda: {"cuda": built})
    code, out, err = run(capsys, "generate", "x", flag, "cuda")
    assert (code, out) == (EXIT_ERROR, "") and err.count("\n") == 1
    assert err.startswith(f"specbranch: error: {flag} was 'cuda', but ")
    assert [text for _, text in NO_CUDA.values() if text in err] == [said]
    with pytest.raises(ValueError, match=f"device was 'cuda', but .*{said}"):
        load_model(Path(__file__).parent, device="cuda")


def test_all_that_is_missing_for_cuda_is_said_at_once(capsys, monkeypatch):
    monkeypatch.setattr(devices, "_why_no_device", lambda: "no NVIDIA driver was found")
    monkeypatch.setattr(devices.torch.version, "cuda", None)
    monkeypatch.setattr(devices.ops, "backends", lambda: {"cuda": False})
    err = run(capsys, "generate", "x", "--device", "cuda")[2]
    assert "no NVIDIA driver" in err and "built without CUDA, and specbranch" in err


def test_a_cuda_device_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(devices, "why_no_cuda", list)
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 2)
    err = run(capsys, "generate", "x", "--draft-device", "cuda:2")[2]
    assert "--draft-device was 'cuda:2', but torch sees 2 CUDA devices here" in err


def test_the_draft_may_have_a_device_of_its_own(capsys, pair):
    argv = ["generate", "abc", *pair, "--max-new-tokens", "9"]
    assert run(capsys, *argv, "--draft-device", "cpu") == run(capsys, *argv)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["a", "--max-new-tokens", "100000"], "--max-new-tokens was 100000"),
        (["", "--max-new-tokens", "4"], "prompt"),
    ],
)
def test_errors_of_the_engine_look_the_same(capsys, pair, argv, named):
    code, out, err = run(capsys, "generate", *argv, *pair)
    assert (code, out) == (EXIT_ERROR, "")
    assert err.startswith("specbranch: error: ") and err.count("\n") == 1
    assert named in err


@pytest.mark.parametrize("content", [b"", b"not json", b"{}"], ids=["empty", "text", "no keys"])
def test_a_folder_that_is_no_checkpoint(capsys, tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    code, out, err = run(capsys, "generate", "a", "--target", str(tmp_path), "--policy", "ar")
    assert (code, out) == (EXIT_ERROR, "")
    assert err.startswith("specbranch: error: ") and err.count("\n") == 1
    assert "config.json" in err or str(tmp_path) in err


def test_file_that_is_not_utf8(capsys, tmp_path):
    (tmp_path / "latin").write_bytes(b"na\xefve")
    code, _, err = run(capsys, "generate", "--file", str(tmp_path / "latin"))
    assert code == EXIT_ERROR and "UTF-8" in err


def test_interrupt_ends_cleanly(capsys, pair, monkeypatch):
    class InterruptedOutput(io.StringIO):
        def write(self, text: str) -> int:
            if self.tell() > 4:
                raise KeyboardInterrupt
            return super().write(text)

    output = InterruptedOutput()
    monkeypatch.setattr(sys, "stdout", output)
    code = main(["generate", "abc", *pair, "--max-new-tokens", "60", "--stats"])
    assert code == EXIT_INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err


def test_choices_are_those_of_the_library():
    from specbranch.models import loader
    from specbranch.policies import POLICIES

    assert set(options.POLICIES) == set(POLICIES)
    assert options.WEIGHTS == loader.WEIGHTS
    alone = {name for name, new in POLICIES.items() if not new(None).needs_draft}
    assert set(options.WITHOUT_DRAFT) == alone


# --------------------------------------------------------------------------------- processes
def test_help_and_version_do_not_import_torch():
    script = (
        "import sys\nfrom specbranch.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    for argv in (
        ["--help"], ["--version"], ["generate", "--help"], ["generate", "--gamma", "0"],
        ["train-hrad", "--help"],
    ):  # fmt: skip
        done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True)
        assert done.returncode == 0, argv


def test_a_real_process(pair):
    argv = [sys.executable, "-m", "specbranch", "generate", "abc", *pair]
    done = subprocess.run([*argv, "--max-new-tokens", "5", "--json"], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(json.loads(done.stdout)["tokens"]) == 5


def test_ctrl_c_in_a_real_process(pair):
    argv = [sys.executable, "-u", "-m", "specbranch", "generate", "abc", *pair]
    process = subprocess.Popen(
        [*argv, "--max-new-tokens", "1900", "--policy", "ar"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUTF8": "1"},
        # Who runs the tests in the background of a shell ignores it, and so would the process.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (EXIT_INTERRUPTED, b"")


def test_a_closed_pipe_is_quiet(pair):
    argv = [sys.executable, "-m", "specbranch", "generate", "abc", *pair]
    process = subprocess.Popen(
        [*argv, "--max-new-tokens", "500"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(60) != 0


def test_the_demo_pair_is_the_default(capsys):
    pytest.importorskip("specbranch.demo")
    if not any((Path(options.__file__).parents[1] / "demo").rglob("*.safetensors")):
        pytest.skip("the demo pair is not in this checkout")
    found = run_json(capsys, "generate", "def add(a, b):", "--max-new-tokens", "12")
    assert found["finish_reason"] in ("length", "eos")
