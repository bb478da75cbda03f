"""A replay counts what the engine counts: exactly where a text is drawn in one way only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planning.pairs import (
    ESTIMATED,
    EXACT,
    ON_TEXT,
    UNIT,
    Case,
    decoded,
    differences,
    record,
    replayed,
    specbranch,
    tables,
)

from specbranch import SamplingParams, demo_pair, demo_predictor
from specbranch.engine import Engine
from specbranch.lanes import SerialLanes
from specbranch.planning import Origin, Trace, Traces
from specbranch.planning.simulate import Simulator
from specbranch.prompts import humaneval
from specbranch.session import Settings
from specbranch.testing.table_model import TableModel

LENGTH = 20
WAYS = {
    "greedy": ({"temperature": 0.0}, "rejection"),
    "coupled": ({"temperature": 0.8}, "coupled"),
    "coupled and cut": ({"temperature": 0.8, "top_k": 5, "top_p": 0.9}, "coupled"),
}


@functools.cache
def demo() -> tuple[Any, Any, tuple[tuple[int, ...], ...]]:
    target, draft, tokenizer = demo_pair()
    texts = humaneval(12)
    return target, draft, tuple(tuple(tokenizer.encode(texts[idx])) for idx in (0, 11))


@functools.cache
def demo_trace(way: str, idx: int) -> Trace:
    target, draft, prompts = demo()
    verify = WAYS[way][1]
    return record((target, draft), list(prompts[idx]), params(LENGTH, way), verify)


def params(length: int, way: str) -> SamplingParams:
    return SamplingParams(max_new_tokens=length, seed=3, **WAYS[way][0])


def check_demo(case: Case, way: str, idx: int) -> dict[str, tuple[int, int]]:
    target, draft, prompts = demo()
    verify = WAYS[way][1]
    want = decoded((target, draft), list(prompts[idx]), params(LENGTH, way), case, verify)
    return differences(replayed(demo_trace(way, idx), case, verify), want)


@pytest.mark.parametrize("idx", [0, 1])
@pytest.mark.parametrize("way", ["greedy", "coupled"])
def test_on_the_demo_pair(way: str, idx: int) -> None:
    found = {str(case): check_demo(case, way, idx) for case in EXACT}
    assert not any(found.values()), found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", [1, 2])
def test_on_tables(seed: int, way: str) -> None:
    pair, verify = tables(seed), WAYS[way][1]
    trace = record(pair, [1, 2, 3], params(50, way), verify)
    for case in EXACT:
        want = decoded(pair, [1, 2, 3], params(50, way), case, verify)
        assert not differences(replayed(trace, case, verify), want), case


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("accepted", lambda trace: np.where(np.arange(len(trace)) % 7, trace.accepted, 0)),
        ("rank", lambda trace: np.where(trace.rank > 0, -1, trace.rank)),
        ("confidence", lambda trace: np.sqrt(trace.confidence)),
        ("entropy", lambda trace: trace.entropy * 1.5),
        ("tokens", lambda trace: [trace.tokens[0], *trace.tokens[:-1]]),
        ("max_new_tokens", lambda trace: trace.max_new_tokens + 1),
    ],
)
def test_a_wrong_trace_is_noticed(name: str, spoil: Callable[[Trace], object]) -> None:
    """Each of the numbers that a replay reads matters to some case."""
    trace = record(tables(2), [1, 2, 3], params(50, "coupled"), "coupled")
    wrong = replace(trace, **{name: spoil(trace)})
    assert any(differences(replayed(wrong, case), replayed(trace, case)) for case in EXACT)


@pytest.mark.parametrize("case", ESTIMATED, ids=str)
def test_growth_that_siblings_prolong_is_estimated(case: Case) -> None:
    """What siblings draft is not in a trace: forwards are within 15 %, all else is exact."""
    target, draft, prompts = demo()
    got = want = 0
    for way in ("greedy", "coupled"):
        for idx, prompt in enumerate(prompts):
            verify = WAYS[way][1]
            real = decoded((target, draft), list(prompt), params(LENGTH, way), case, verify)
            ours = replayed(demo_trace(way, idx), case, verify)
            assert not differences(ours, real, ON_TEXT)
            got, want = got + ours.draft_forwards, want + real.draft_forwards
    assert got == pytest.approx(want, rel=0.15)


def test_with_hrad() -> None:
    target, draft, prompts = demo()
    predictor, case = demo_predictor(target), specbranch(4, 4, 0.3)
    trace = record(
        (target, draft),
        list(prompts[0]),
        params(LENGTH, "greedy"),
        "rejection",
        predictor=predictor,
    )
    assert set(trace.keep.tolist()) > {0, 2}, "a predictor that says one thing tests nothing"
    traces = Traces([trace], Origin(hrad=True))
    got = Simulator(traces, UNIT).each("specbranch", Settings(**case.settings), hrad=True)[0]
    engine = Engine(
        target, draft, predictor=predictor, lanes=SerialLanes(1), threads=1, rounds="host",
        **case.settings,
    )  # fmt: skip
    want = engine.generate(list(prompts[0]), params(LENGTH, "greedy")).stats
    assert not differences(got, want)


def test_a_request_that_ends_early() -> None:
    """The last round may commit tokens behind the end; the trace has them."""
    target, draft = tables(1)
    free = record((target, draft), [1, 2, 3], params(60, "coupled"), "coupled")
    counts = {token: free.tokens.index(token) for token in set(free.tokens)}
    eos = max(counts, key=lambda token: counts[token])
    target.eos_token_ids = (eos,)
    trace = record((target, draft), [1, 2, 3], params(60, "coupled"), "coupled")
    assert trace.end == counts[eos] + 1 < 40 < len(trace) + 20
    for case in EXACT:
        want = decoded((target, draft), [1, 2, 3], params(60, "coupled"), case, "coupled")
        assert not differences(replayed(trace, case, "coupled"), want), case


# ------------------------------------------------------------------------------------- rejection
NUM_REQUESTS = 24
REJECTION = [
    Case("sps", {"gamma": 4}),
    specbranch(4, 4, 0.0),
    Case("pearl", {"gamma": 3}),
    Case("ngram", {"gamma": 3}),
]


@functools.cache
def rejection_traces() -> list[Trace]:
    pair = tables(2)
    return [
        record(pair, [1, 2, 3], SamplingParams(max_new_tokens=48, temperature=0.7, seed=seed),
               "rejection", rollout=9)
        for seed in range(NUM_REQUESTS)
    ]  # fmt: skip


def z_score(case: Case, traces: list[Trace], draft: TableModel | None = None) -> float:
    """Difference of tokens per round in standard errors; the engine has other seeds."""
    target, usual = tables(2)
    ours = [replayed(trace, case).tokens_per_round for trace in traces]
    theirs = [
        decoded(
            (target, draft or usual), [1, 2, 3],
            SamplingParams(max_new_tokens=48, temperature=0.7, seed=1000 + seed), case, "rejection",
        ).tokens_per_round
        for seed in range(NUM_REQUESTS)
    ]  # fmt: skip
    error = np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / NUM_REQUESTS)
    return float((np.mean(ours) - np.mean(theirs)) / error)


@pytest.mark.parametrize("case", REJECTION, ids=str)
def test_rejection_agrees_in_the_mean(case: Case) -> None:
    assert abs(z_score(case, rejection_traces())) < 3.5


def test_that_test_tells_another_draft() -> None:
    """Its power: a draft with two thirds of the noise more is more than five errors away."""
    target, draft = tables(2)
    worse = TableModel(target.table + (draft.table - target.table) * (5 / 3))
    assert z_score(REJECTION[0], rejection_traces(), worse) > 5
