"""What a trace holds, its file, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planning.pairs import UNIT, Case, decoded, record, tables
from safetensors.torch import save_file

from specbranch import SamplingParams
from specbranch.planning import Origin, Traces, iid_trace, record_traces, simulate
from specbranch.planning.trace import LARGEST_K, run_lengths, same
from specbranch.session import Settings

PARAMS = SamplingParams(max_new_tokens=30, temperature=0.8, seed=4)


@pytest.mark.parametrize("verify", ["rejection", "coupled"])
def test_rollouts_follow_the_text(verify: str) -> None:
    """Where a drafted token was accepted, the next rollout is this one without it."""
    trace = record(tables(1), [1, 2, 3], PARAMS, verify, rollout=6)
    held = [idx for idx in range(len(trace) - 8) if trace.accepted[idx]]
    assert 5 < len(held) < len(trace) - 5
    for idx in held:
        for name in ("confidence", "entropy", "support", "drafted_rank"):
            rows = getattr(trace, name)
            assert np.array_equal(rows[idx, 1:], rows[idx + 1, :-1]), (idx, name)
        assert trace.accepted[idx] == min(6, trace.accepted[idx + 1] + 1)


def test_rows_are_those_of_the_draft() -> None:
    """Confidence and entropy by definition, from the table, at the first place of a rollout."""
    target, draft = tables(1)
    trace = record((target, draft), [1, 2, 3], PARAMS, "rejection", rollout=4)
    text = [*trace.prompt, *trace.tokens]
    probabilities = draft.probabilities(0.8)
    for idx, token in enumerate(trace.tokens):
        row = probabilities[text[idx + 1], text[idx + 2]]
        assert trace.confidence[idx, 0] == pytest.approx(row.max(), rel=1e-5)
        assert trace.entropy[idx, 0] == pytest.approx(-(row * np.log(row)).sum(), rel=1e-4)
        assert trace.rank[idx] == (row > row[token]).sum()


def test_coupled_text_is_that_of_the_target_alone() -> None:
    pair = tables(2)
    trace = record(pair, [1, 2, 3], PARAMS, "coupled")
    assert decoded(pair, [1, 2, 3], PARAMS, Case("ar"), "coupled").committed == len(trace)
    other = record((pair[0], tables(5)[1]), [1, 2, 3], PARAMS, "coupled")
    assert other.tokens == trace.tokens and not np.array_equal(other.accepted, trace.accepted)
    assert set(trace.rank[trace.accepted > 0].tolist()) == {0}
    assert set(trace.rank[trace.accepted == 0].tolist()) <= set(range(1, 8))


def test_run_lengths() -> None:
    assert run_lengths([True, True, True, False, True], 2).tolist() == [2, 2, 1, 0, 1]


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    path = tmp_path / "traces.safetensors"
    prompts = [[1, 2, 3], [4, 5], [2, 2, 2, 2]]
    saved = record_traces(*tables(1), prompts, PARAMS, rollout=5, origin=Origin("big", "small"))
    saved.save(path)
    loaded = Traces.load(path)
    assert loaded.origin == saved.origin == Origin("big", "small", 0.8, seed=4)
    pairs = zip(saved.requests, loaded.requests, strict=True)
    assert all(same(*each) for each in pairs)
    assert [trace.prompt for trace in loaded.requests] == prompts
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first and list(tmp_path.iterdir()) == [path]


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_text("nothing of the kind")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        Traces.load(path)
    save_file({"tokens": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="does not hold traces; specbranch plan --record"):
        Traces.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rollout": 0}, "rollout was 0; it must be in 1 .. 64"),
        ({"prompt": []}, "prompt was empty"),
        ({"params": SamplingParams(max_new_tokens=5000)}, "together they must be at most 4096"),
    ],
)
def test_bad_recordings(change: dict[str, object], message: str) -> None:
    given = {"pair": tables(1), "prompt": [1, 2], "params": PARAMS, "verify": "rejection"} | change
    with pytest.raises(ValueError, match=message):
        record(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("last", "message"),
    [([], r"prompts\[2\]: prompt was empty"), ([1] * 4090, r"prompts\[2\]: max")],
)
def test_a_prompt_that_does_not_fit_is_found_before_any_is_recorded(
    last: list[int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specbranch.planning.record.record_trace", None)
    with pytest.raises(ValueError, match=message):
        record_traces(*tables(1), [[1, 2], [3], last], PARAMS)


def test_acceptance_is_of_the_text_alone() -> None:
    """What a recording follows behind the end of a request does not count."""
    trace = iid_trace(0.5, 40)
    ended = replace(trace, accepted=np.where(np.arange(40) < 10, 1, 0), end=10)
    assert Traces([ended]).acceptance_rate == 1.0


@pytest.mark.parametrize(
    ("policy", "settings", "hrad", "message"),
    [
        ("lookahead", {}, False, "'lookahead', which cannot be replayed: its window reads"),
        ("auto", {}, False, "'auto', which cannot be replayed: what it tries next follows"),
        ("best", {}, False, "policy was 'best'; it must be one of ar, sps"),
        ("sps", {"gamma": 9}, False, "gamma was 9; with rollouts of 9 tokens .* at most 8"),
        ("fanout", {"k_max": 33}, False, f"k_max was 33; a trace can tell at most {LARGEST_K}"),
        ("specbranch", {}, True, "must have been recorded with a predictor"),
    ],
)
def test_bad_replays(policy: str, settings: dict[str, int], hrad: bool, message: str) -> None:
    traces = Traces([iid_trace(0.5, 30, rollout=9)])
    with pytest.raises(ValueError, match=message):
        simulate(traces, UNIT, policy, Settings(**settings), hrad=hrad)


def test_policies_without_a_draft_need_no_rollout() -> None:
    trace = iid_trace(0.5, 30, rollout=3)
    trace = replace(trace, tokens=[1, 2, 3] * 10)
    found = simulate(Traces([trace]), UNIT, "ngram", Settings(gamma=8))
    assert found.stats.tokens_per_round > 3
