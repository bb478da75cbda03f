"""``specbranch plan``: recording, replaying, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from specbranch.cli import EXIT_ERROR, main, plan_options
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
    code, out, _ = run(capsys, "--traces", str(path), "--speed-ratio", "5", *QUICK)
    assert code == 0 and "temperature 0.5" in out
    measured = run(
        capsys, *short[:2], "--n", "1", *short[4:], "--measure", "--policies", "sps", *QUICK
    )
    assert measured[0] == 0 and "tokens/s" in measured[1], measured[2]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "give what forwards cost in one way"),
        (("--target-ms", "5"), "give what forwards cost in one way"),
        (("--measure", "--speed-ratio", "5"), "give what forwards cost in one way"),
        (("--speed-ratio", "0"), "--speed-ratio was 0.0; it must be finite and greater than 0"),
        (("--target-ms", "1:x", "--draft-ms", "1"), "--target-ms was '1:x'; it must be one time"),
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
        (("--speed-ratio", "5", "--prompts", "nowhere"), "--prompts: "),
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
