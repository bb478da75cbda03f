"""Replays of made-up requests against formulas: docs/planning.md derives them.

alpha: acceptance, i.i.d.; gamma: draft length; c: a target forward in draft forwards.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from specbranch.planning import Costs, Hardware, Traces, iid_trace, simulate
from specbranch.planning.lookup import Lookup
from specbranch.planning.simulate import replay
from specbranch.session import Settings
from specbranch.stats import Stats

LENGTH = 12_000
CASES = [(0.4, 2, 10.0), (0.4, 8, 4.0), (0.7, 5, 5.0), (0.9, 2, 10.0), (0.9, 8, 4.0)]


@functools.cache
def lookup(alpha: float, second: float = 0.0, confidence: float = 1.0) -> Lookup:
    trace = iid_trace(alpha, LENGTH, rollout=9, seed=1, second=second, confidence=confidence)
    return Lookup(trace)


def run(policy: str, text: Lookup, gamma: int, c: float, **settings: object) -> Stats:
    return replay(text, policy, Settings(gamma=gamma, **settings), Hardware(Costs.of_ratio(c)))


def time_per_token(stats: Stats) -> float:
    return stats.seconds / stats.new_tokens


def accepted(alpha: float, gamma: int) -> float:
    """E[X], truncated geometric: alpha (1 - alpha^gamma) / (1 - alpha)."""
    return sum(alpha**k for k in range(1, gamma + 1))


def with_rollback(alpha: float, judged: int, stage: float) -> float:
    """Time per token of a pipeline that judges ``judged`` tokens a round, one where it is empty.

    Full rounds commit ``(1 - alpha^judged) / (1 - alpha)`` tokens and are followed by a full one
    with probability alpha^judged; empty ones commit one token, and a full one follows with
    probability alpha. Both take ``stage``.
    """
    full = alpha / (alpha + 1 - alpha**judged)
    return stage / (full * (1 + accepted(alpha, judged - 1)) + 1 - full)


def test_autoregressive() -> None:
    assert time_per_token(run("ar", lookup(0.4), 3, 7.0)) == pytest.approx(7.0)


@pytest.mark.parametrize(("alpha", "gamma", "c"), CASES)
def test_speculative_sampling(alpha: float, gamma: int, c: float) -> None:
    expected = (gamma + c) / (accepted(alpha, gamma) + 1)
    assert time_per_token(run("sps", lookup(alpha), gamma, c)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("alpha", "gamma", "c"), CASES)
def test_pearl_is_the_pipeline(alpha: float, gamma: int, c: float) -> None:
    expected = with_rollback(alpha, gamma, max(gamma, c))
    assert time_per_token(run("pearl", lookup(alpha), gamma, c)) == pytest.approx(
        expected, rel=0.02
    )
    # The sums of the geometric series, by hand.
    short = (1 - alpha) * (1 + alpha - alpha**gamma) / (1 - alpha**gamma) * max(gamma, c)
    assert expected == pytest.approx(short)


@pytest.mark.parametrize(("alpha", "gamma", "c"), CASES)
def test_one_branch_is_pearl_with_one_more(alpha: float, gamma: int, c: float) -> None:
    stats = run("specbranch", lookup(alpha), gamma, c, k_max=1)
    expected = with_rollback(alpha, gamma + 1, max(gamma + 1, c))
    assert time_per_token(stats) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("alpha", "gamma", "c"), CASES)
def test_serial_stage_with_one_branch(alpha: float, gamma: int, c: float) -> None:
    """Theorem 1's process as the engine has it; see ``test_theorem_1_is_an_approximation``."""
    stats = run("specbranch", lookup(alpha), gamma, c, k_max=1, draft_stage="serial")
    missed = 1 - alpha ** (gamma + 1)
    expected = (max(gamma + 1, c) + missed * gamma) / (1 + accepted(alpha, gamma))
    assert time_per_token(stats) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("alpha", "gamma", "c"), CASES)
def test_more_branches_hit_more_often(alpha: float, gamma: int, c: float) -> None:
    second = 0.6
    hit = alpha + (1 - alpha) * second
    # Confidence 0.5: two branches.
    stats = run("specbranch", lookup(alpha, second, 0.5), gamma, c, k_max=4)
    full = hit / (hit + 1 - alpha**gamma * hit)
    tokens = full * (1 + accepted(alpha, gamma)) + 1 - full
    assert time_per_token(stats) == pytest.approx(max(gamma + 1, c) / tokens, rel=0.02)
    assert stats.branch_hit_rate == pytest.approx(hit, rel=0.02)


@pytest.mark.parametrize(("gamma", "c"), [(2, 6.0), (6, 6.0), (8, 3.0)])
def test_ideal_parallel(gamma: int, c: float) -> None:
    found = time_per_token(run("pearl", lookup(1.0), gamma, c))
    assert found == pytest.approx(max(gamma, c) / gamma, rel=0.02)


@pytest.mark.parametrize("policy", ["sps", "pearl", "specbranch", "fanout"])
def test_zero_bubble_limit(policy: str) -> None:
    """c over the tokens of a target forward; reached where the draft costs next to nothing."""
    trace = iid_trace(0.8, 4000, rollout=9)
    for c, is_reached in ((1000.0, True), (2.0, False)):
        hardware = Hardware(Costs.of_ratio(c))
        prediction = simulate(Traces([trace]), hardware, policy, Settings(gamma=4, k_max=1))
        limit = prediction.stats.tokens_per_round
        assert prediction.zero_bubble == pytest.approx(limit, rel=1e-3)
        assert (prediction.speedup > 0.98 * limit) is is_reached
        assert prediction.stats.bubble == pytest.approx(1 - prediction.speedup / limit, abs=1e-3)


@pytest.mark.parametrize("policy", ["ar", "sps", "pearl"])
def test_zero_bubble_limit_is_not_about_the_host(policy: str) -> None:
    """What the host adds to a round is neither the target's work nor waiting that can be saved."""
    traces = Traces([iid_trace(0.8, 1000, rollout=9)])
    costs = replace(Costs.of_ratio(5.0), join=3.0)
    prediction = simulate(traces, Hardware(costs), policy, Settings(gamma=4))
    # The last round is cut, so that it commits fewer tokens than it is counted for.
    assert prediction.zero_bubble == pytest.approx(prediction.stats.tokens_per_round, rel=5e-3)


def theorem_1(alpha: float, gamma: int, c: float) -> float:
    """The paper's, in draft forwards per accepted token."""
    return 2 * max(gamma, c) / ((1 + alpha**gamma) * accepted(alpha, gamma))


def lost_stage(alpha: float, gamma: int, c: float) -> float:
    """Its process, exactly: a stage is lost behind each rejection, rejected tokens count nothing.

    Of the stages, 1 / (2 - alpha^gamma) have a chain to judge.
    """
    return (2 - alpha**gamma) * max(gamma, c) / accepted(alpha, gamma)


@pytest.mark.parametrize(("alpha", "gamma", "c"), CASES)
def test_theorem_1_is_an_approximation(alpha: float, gamma: int, c: float) -> None:
    """It takes stages in pairs that begin with a chain; counted from a replay, they do not."""
    found = _count_stages(alpha, gamma) * max(gamma, c)
    assert found == pytest.approx(lost_stage(alpha, gamma, c), rel=0.02)
    full = alpha**gamma
    ratio = theorem_1(alpha, gamma, c) / lost_stage(alpha, gamma, c)
    assert ratio == pytest.approx(2 / ((1 + full) * (2 - full)))
    assert 8 / 9 - 1e-9 <= ratio <= 1


def _count_stages(alpha: float, gamma: int) -> float:
    """Stages per accepted token, from the runs of an i.i.d. trace."""
    trace = iid_trace(alpha, 5 * LENGTH, seed=1)
    at = stages = tokens = 0
    has_chain = True
    while at < len(trace) - gamma:
        stages += 1
        if not has_chain:
            has_chain = True
            continue
        held = min(int(trace.accepted[at]), gamma)
        has_chain = held == gamma
        tokens += held
        at += held + (not has_chain)  # the rejected place is not judged again
    return stages / tokens
