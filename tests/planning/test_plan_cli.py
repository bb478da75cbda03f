"""``specbranch plan``: recording, replaying, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from specbranch.cli import EXIT_ERROR, main, plan_options
from specbranch.cli.options import TRAINED_ON
from specbranch.planning import Grid, Origin, Traces, iid_trace
from specbranch.planning.simulate import REPLAYED
from specbranch.prompts import humaneval

QUICK = ("--gammas", "2", "4", "--k-maxes", "2", "--epsilons", "0", "0.3")


@pytest.fixture
def traces(tmp_path: Path) -> str:
    path = tmp_path / "traces.safetensors"
    made = Traces([iid_trace(0.8, 200, seed=seed) for seed in range(2)], Origin("big", "small"))
    made.save(path)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["plan", *argv])
    out, err = capsys.readouterr()
    return code, out, err


STAGES = ("overlap", "serial")


def test_the_table(capsys: pytest.CaptureFixture[str], traces: str) -> None:
    code, out, _ = run(capsys, "--traces", traces, "--speed-ratio", "8", *QUICK)
    lines = out.splitlines()
    assert code == 0 and lines[0].startswith("big and small: 2 prompts")
    names = [line[:24].strip() for line in lines[4:-2]]
    plain = set(REPLAYED) - {"specbranch", "fanout"}
    staged = {f"{name} {stage}" for name in ("specbranch", "fanout") for stage in STAGES}
    assert sorted(names) == sorted(plain | staged)
    assert float(lines[4].split()[-6]) >= float(lines[5].split()[-6]), "best first"


def test_json_and_units(capsys: pytest.CaptureFixture[str], traces: str) -> None:
    """Milliseconds in place of draft forwards change no speedup."""
    found = []
    for costs in (("--speed-ratio", "8"), ("--target-ms", "16", "--draft-ms", "2")):
        code, out, _ = run(capsys, "--traces", traces, *costs, *QUICK, "--json")
        assert code == 0
        found.append(json.loads(out))
    speedups = [
        {(each["policy"], str(each["settings"])): each["speedup"] for each in one["best"]}
        for one in found
    ]
    assert len(speedups[0]) == len(REPLAYED) + 2, "two policies have two draft stages"
    assert speedups[0] == pytest.approx(speedups[1])
    assert [one["hardware"]["unit"] for one in found] == ["draft forwards", "ms"]
    serial = run(capsys, "--traces", traces, "--speed-ratio", "8", *QUICK, "--json", "--serial")[1]
    assert json.loads(serial)["hardware"]["parallel"] is False
    assert json.loads(serial)["best"][0]["speedup"] < found[0]["best"][0]["speedup"]


def test_record_then_replay(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """On the demo pair, which is the default."""
    path, prompts = tmp_path / "traces.safetensors", tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": text[:120]}) for text in humaneval(3)]
    prompts.write_text("\n".join(lines), encoding="utf-8")
    short = ("--prompts", str(prompts), "--n", "2", "--max-new-tokens", "12")
    code, out, _ = run(capsys, "--record", "-o", str(path), *short, "--temperature", "0.5")
    assert code == 0 and "2 prompts" in out
    loaded = Traces.load(path)
    assert (loaded.origin.temperature, len(loaded.requests)) == (0.5, 2)
    assert loaded.origin.draft == "demo/draft"
    assert TRAINED_ON not in out, "the prompts are others"
    code, out, _ = run(capsys, "--traces", str(path), "--speed-ratio", "5", *QUICK)
    assert code == 0 and "temperature 0.5" in out
    again = ("--traces", str(path), *short[:2], "--n", "1", *short[4:])
    measured = run(capsys, *again, "--measure", "--policies", "sps", *QUICK)
    assert measured[0] == 0 and "tokens/s" in measured[1], measured[2]


def test_stdlib_is_the_default_and_is_owned_up_to(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "new" / "traces.safetensors"
    short = ("--record", "-o", str(path), "--n", "1", "--max-new-tokens", "2")
    code, out, _ = run(capsys, *short, "--layer-skip", "1", "--rollout", "4")
    assert code == 0 and "(stdlib)" in out and TRAINED_ON in out
    assert Traces.load(path).origin.draft == "demo/target, first 1 layers"
    replayed = ("--traces", str(path), "--speed-ratio", "5", "--gammas", "2", "--policies", "sps")
    assert TRAINED_ON in run(capsys, *replayed)[1]
    assert json.loads(run(capsys, *replayed, "--json")[1])["notes"] == [TRAINED_ON]


def never(options: object) -> NoReturn:
    """In the place of what loads models."""
    raise AssertionError("it has begun")


def test_what_cannot_end_well_does_not_begin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, traces: str, tmp_path: Path
) -> None:
    monkeypatch.setattr("specbranch.cli.plan.load_models", never)
    for argv, message in (
        (("--record", "-o", f"{traces}/x"), f"-o was '{traces}/x'; it must be where files can"),
        (("--record", "-o", str(tmp_path)), f"-o was '{tmp_path}', a directory; it must be a"),
        (("--traces", traces, "--measure"), "--traces are of big and small, and --measure is"),
        (("--traces", traces, "--measure", "--gammas", "20"), "--gammas had 20; with rollouts"),
    ):
        code, out, err = run(capsys, *argv)
        assert (code, out) == (EXIT_ERROR, "") and message in err, err


REPLAY, RATIO = ("--traces", __file__, "--speed-ratio", "5"), ("--speed-ratio", "5")
MEASURED, RECORD = ("--traces", __file__, "--measure"), ("--record", "-o", "x")
IGNORED = [
    *[(REPLAY, flag, "--traces; no model runs then") for flag in (
        ("--prompts", "stdlib"), ("--n", "8"), ("--temperature", "0"), ("--seed", "0"),
        ("--verify", "coupled"), ("--target", ".", "--draft", "."), ("--layer-skip", "1"),
        ("--device", "cuda"), ("--dtype", "bfloat16"),
    )],
    *[(start, flag, "--traces; nothing is recorded then") for start in (REPLAY, MEASURED)
      for flag in (("--rollout", "16"), ("--hrad", "demo"))],
    *[(("--measure",), (flag, "0"), "--measure; it is measured too")
      for flag in ("--join-ms", "--draft-overhead-ms")],
    *[(RATIO, (flag, "1"), "--speed-ratio; with a ratio there are no milliseconds")
      for flag in ("--join-ms", "--draft-overhead-ms")],
    *[(RECORD, flag, "--record; nothing is replayed then") for flag in (
        RATIO, ("--target-ms", "1"), ("--join-ms", "0"), ("--measure",), ("--serial",),
        ("--policies", "sps"), ("--gammas", "1"), ("--json",),
    )],
]  # fmt: skip


@pytest.mark.parametrize(
    ("start", "flag", "why"), IGNORED, ids=[f"{start[0]} {flag[0]}" for start, flag, _ in IGNORED]
)
def test_what_would_be_ignored_is_refused(
    capsys: pytest.CaptureFixture[str], start: tuple[str, ...], flag: tuple[str, ...], why: str
) -> None:
    code, out, err = run(capsys, *start, *flag)
    assert (code, out) == (EXIT_ERROR, "")
    assert f"{flag[0]} was given with {why}" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "give what forwards cost in one way"),
        (("--target-ms", "5"), "give what forwards cost in one way"),
        (("--measure", "--speed-ratio", "5"), "give what forwards cost in one way"),
        (("--speed-ratio", "0"), "--speed-ratio was 0.0; it must be finite and greater than 0"),
        (("--target-ms", "1:x", "--draft-ms", "1"), "--target-ms was '1:x'; it must be one time"),
        (("--target-ms", "0", "--draft-ms", "1"), "--target-ms was '0'; a forward must take more"),
        (("--record",), "--record needs -o FILE"),
        (("--record", "--traces", "x", "-o", "y"), "exclude each other"),
        (("--traces", "nowhere", "--speed-ratio", "5"), "--traces was 'nowhere'; it must be a"),
        (("--speed-ratio", "5", "--gammas", "16"), "--gammas had 16; it must be below --rollout"),
        (("--speed-ratio", "5", "--k-maxes", "0"), "--k-maxes was 0; it must be in 1 .. 32"),
        (("--speed-ratio", "5", "--n", "0"), "--n was 0; it must be at least 1"),
        (("--speed-ratio", "5", "--epsilons", "2"), "--epsilons was 2.0; it must be finite"),
        (("--speed-ratio", "5", "--join-ms", "-1"), "--join-ms was -1.0"),
        (("--speed-ratio", "5", "--temperature", "-1"), "--temperature was -1.0"),
        (("--speed-ratio", "5", "--target", "."), "--target and --draft belong together"),
        (("--speed-ratio", "5", "--prompts", "nowhere"), "--prompts was 'nowhere'; it must be"),
        (("--speed-ratio", "5", "--hrad", "nowhere"), "--hrad was 'nowhere'; it must be a file"),
        (("--speed-ratio", "5", "--layer-skip", "0"), "--layer-skip was 0; it must be at least 1"),
        (("--measure", "--device", "cuda:0"), "--device was 'cuda:0' with --measure; costs can"),
        (("--measure", "--draft-device", "cuda"), "--draft-device was 'cuda' with --measure"),
        (("--speed-ratio", "5", "--policies", "lookahead"), "--policies had 'lookahead', which"),
        (("--speed-ratio", "5", "--policies", "auto"), "--policies had 'auto', which cannot"),
        (("--speed-ratio", "5", "--policies", "sps", "sps"), "--policies: 'sps' was given twice"),
    ],
)
def test_bad_command_lines(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], message: str
) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (EXIT_ERROR, "")
    assert message in err and err.count("\n") == 1


def test_traces_that_do_not_reach(capsys: pytest.CaptureFixture[str], traces: str) -> None:
    code, _, err = run(capsys, "--traces", traces, "--speed-ratio", "5", "--gammas", "20")
    assert code == EXIT_ERROR and "--gammas had 20; with rollouts of 16 tokens" in err


def test_defaults_are_those_of_the_library() -> None:
    grid, options = Grid(), plan_options.PlanOptions()
    assert options.policies == REPLAYED
    assert (options.gammas, options.k_maxes, options.epsilons) == (
        grid.gammas,
        grid.k_maxes,
        grid.epsilons,
    )


def test_help_does_not_import_torch() -> None:
    script = (
        "import sys\nfrom specbranch.cli import main\n"
        "try: main(['plan', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0
