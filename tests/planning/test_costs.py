"""Times of forwards, the clock of two lanes, what is measured, and the grid."""

from __future__ import annotations

import numpy as np
import pytest
from planning.pairs import tables

from specbranch import SamplingParams
from specbranch.planning import Costs, Grid, Hardware, Table, Traces, iid_trace, measure_costs, plan
from specbranch.planning.clock import Clock
from specbranch.planning.costs import parse_table
from specbranch.planning.lookup import Lookup
from specbranch.planning.measure import Samples, summed_up
from specbranch.planning.simulate import replay
from specbranch.session import Settings
from specbranch.timeline import Round, Span, Timeline


@pytest.mark.parametrize(
    ("rows", "time"), [(1, 20.0), (2, 20.25), (5, 21.0), (11, 22.5), (17, 24.0), (29, 27.0)]
)
def test_a_table_is_linear_between_its_points(rows: int, time: float) -> None:
    assert parse_table("5:21,1:20,17:24", "T")(rows) == pytest.approx(time)
    assert parse_table("3.5", "T")(rows) == 3.5
    assert Table([(4, 7.0), (8, 9.0)])(1) == 7.0


@pytest.mark.parametrize("text", ["", "a", "1:2:3", "0:1", "1:1,1:2", "1:-1", "1:nan", "1:2,"])
def test_bad_tables(text: str) -> None:
    with pytest.raises(ValueError, match=r"--target-ms was .*; it must be one time, or ROWS:TIME"):
        parse_table(text, "--target-ms")


@pytest.mark.parametrize(
    ("parallel", "target", "draft", "now"),
    [(True, 5.0, 3.0, 6.0), (True, 2.0, 3.0, 4.0), (False, 5.0, 3.0, 9.0)],
)
def test_the_clock(parallel: bool, target: float, draft: float, now: float) -> None:
    clock = Clock(Hardware(Costs.of_ratio(2.0), parallel=parallel))
    clock.spend_draft(1.0)
    clock.run(lambda: clock.spend_target(target), lambda: clock.spend_draft(draft))
    assert (clock.now, clock.target_busy, clock.draft_busy) == (now, target, draft + 1.0)


COSTS = Costs(
    Table([(1, 10.0), (11, 20.0)]), Table([(1, 1.0), (2, 1.5)]), Table([(1, 0.5)]),
    Table([(1, 0.2)]), join=0.3, stage=0.1,
)  # fmt: skip


def test_what_a_round_costs() -> None:
    """All accepted, 12 tokens: rounds by hand."""
    text = Lookup(iid_trace(1.0, 12))
    # Chains 4, 4 and 1 of 5 + 5 + 2 tokens; the draft reads 1, then 2 tokens first.
    sps = replay(text, "sps", Settings(gamma=4), Hardware(COSTS))
    draft = (0.1 + 4.0) + (0.1 + 1.5 + 3.0) + (0.1 + 1.5)
    assert sps.seconds == pytest.approx(draft + 14.0 + 14.0 + 11.0 + 3 * 0.5)
    assert sps.target_seconds == pytest.approx(39.0 + 3 * 0.2)
    # Chains 0, 5: six forwards of the draft in the first round, none that grows in the second.
    one = Settings(gamma=5, k_max=1)
    branched = replay(Lookup(iid_trace(1.0, 7)), "specbranch", one, Hardware(COSTS))
    assert branched.rounds == 2 and branched.draft_forwards == 1 + 5 + 1
    assert branched.seconds == pytest.approx(10.0 + 15.0 + 2 * 0.5)
    serial = replay(Lookup(iid_trace(1.0, 7)), "specbranch", one, Hardware(COSTS, parallel=False))
    assert serial.seconds == pytest.approx(branched.seconds + 0.5 + 0.1 + 5.0 + 0.5)


def test_costs_of_lanes_that_share() -> None:
    """Slower together: only what overlaps is slower; a join may be a policy's own."""
    slow = Costs(Table([(1, 20.0)]), Table([(1, 2.0)]), own={"pearl": {"join": 5.0, "gap": 3.0}})
    fast = Costs(
        Table([(1, 10.0)]),
        Table([(1, 1.0)]),
        own={"pearl": {"join": 1.0, "gap": 9.0}, "sps": {"join": 2.0}},
    )
    shared, text = Hardware(fast, slow), Lookup(iid_trace(1.0, 8))
    assert replay(text, "sps", Settings(gamma=7), shared).seconds == 7.0 + 10.0 + 2.0
    assert replay(text, "pearl", Settings(gamma=4), shared).seconds == 3 * (20.0 + 5.0)
    alone = Hardware(fast, slow, parallel=False)
    # Drafts of 4, 3 and 1 tokens; 1, 4 and 3 are committed.
    assert replay(text, "pearl", Settings(gamma=4), alone).seconds == 8.0 + 3 * (10.0 + 1.0)


def test_samples_of_spans() -> None:
    """Two rounds of a drafting policy, by hand: stage 1, draft 2 a forward, idle 0.5."""
    samples = Samples()
    for forwards in (1, 2, 4):
        timeline, start = Timeline(), 0.0
        for idx in range(8):
            for lane, work, rows, count, seconds in (
                ("draft", "chain", 1, forwards, 1.0 + 2.0 * forwards),
                ("target", "forward", forwards + 1, 1, 10.0 + forwards),
                ("target", "verify", forwards + 1, 1, 0.25),
            ):
                timeline.spans.append(Span(lane, work, idx, start, start + seconds, rows, count))
                start += seconds
            timeline.rounds.append(Round(0, forwards, 0, 1, "recovered"))
            start += 0.5
        samples.add(timeline, parallel=False)
    costs = summed_up({"sps": samples}).of("sps")
    assert costs.stage == pytest.approx(1000.0) and costs.draft(1) == pytest.approx(2000.0)
    assert costs.target.points == [(2, 11_000.0), (3, 12_000.0), (5, 14_000.0)]
    assert costs.verify(3) == pytest.approx(250.0)
    assert costs.join == pytest.approx(500.0)


def test_samples_of_lanes_that_overlap() -> None:
    """Draft: starts 1 late, waits 2 between its spans; the join is what is left of the round."""
    timeline = Timeline()
    for idx in range(10):
        at = 30.0 * idx
        timeline.spans += [
            Span("draft", "read", idx, at + 1, at + 4, 1, 1),
            Span("target", "forward", idx, at, at + 10, 1, 1),
            Span("draft", "branches", idx, at + 6, at + 16, 3, 2),
            Span("target", "verify", idx, at + 20, at + 21, 1, 1),
        ]
    samples = Samples()
    samples.add(timeline, parallel=True)
    costs = summed_up({"specbranch": samples}, parallel=True).of("specbranch")
    assert (costs.gap, costs.join) == (3000.0, 30_000.0 - (3 + 13 + 1) * 1000)
    assert costs.draft(3) == 5000.0 and costs.read_time(1) == 3000.0 and costs.stage == 0.0
    clock = Clock(Hardware(costs, costs))
    draft = costs.read_time(1) + 2 * costs.draft(3)
    clock.run(lambda: clock.spend_target(10_000.0), lambda: clock.spend_draft(draft))
    assert clock.now == 16_000.0


def test_lanes_that_wait_for_each_other_take_longer_than_either() -> None:
    """Both lanes take 10 as a rule, now 5, now 15: a round takes what the slower one does."""
    rng, timeline, at = np.random.default_rng(0), Timeline(), 0.0
    num_rounds = 400
    for idx in range(num_rounds):
        target, draft = rng.uniform(5.0, 15.0, 2)
        timeline.spans += [
            Span("target", "forward", idx, at, at + target, 1, 1),
            Span("draft", "branches", idx, at, at + draft, 2, 1),
        ]
        at += max(target, draft)
    samples = Samples()
    samples.add(timeline, parallel=True)
    costs = summed_up({"specbranch": samples}, parallel=True).of("specbranch")
    clock = Clock(Hardware(costs, costs))
    clock.run(
        lambda: clock.spend_target(costs.target(1)), lambda: clock.spend_draft(costs.draft(2))
    )
    assert clock.now == pytest.approx(10_000.0, rel=0.1)
    assert clock.now + costs.join == pytest.approx(1e3 * at / num_rounds, rel=0.01)
    assert at / num_rounds > 11.0, "else this shows nothing"


@pytest.mark.parametrize("parallel", [True, False])
def test_measured_costs(parallel: bool) -> None:
    params = SamplingParams(max_new_tokens=10, temperature=0.8)
    found = measure_costs(*tables(1), [[1, 2, 3]], params, parallel=parallel)
    assert (found.together is not None) is found.parallel is parallel
    for costs in (found.alone, found.together or found.alone):
        assert costs.target(1) > 0 and costs.draft(1) > 0 and costs.verify(1) > 0
        assert {"specbranch", "pearl", "fanout"} <= set(costs.own)


def test_the_plan_takes_the_best_of_the_grid() -> None:
    """i.i.d. 0.8, c = 10: SpS is best at the gamma that the closed form says."""
    traces = Traces([iid_trace(0.8, 4000, seed=2)])
    grid = Grid(gammas=tuple(range(1, 9)), k_maxes=(1, 2), epsilons=(0.0,))
    found = plan(traces, Hardware(Costs.of_ratio(10.0)), policies=["ar", "sps", "pearl"], grid=grid)
    by_name = {each.name: each for each in found.best}
    assert found.num_tried == 1 + 8 + 8
    best = max(range(1, 9), key=lambda g: sum(0.8**k for k in range(g + 1)) / (g + 10))
    assert abs(by_name["sps"].settings.gamma - best) <= 1
    assert by_name["ar"].speedup == 1.0
    speedups = [each.speedup for each in found.best]
    assert speedups == sorted(speedups, reverse=True)


def test_specbranch_has_a_row_for_each_way() -> None:
    traces = Traces([iid_trace(0.8, 200)])
    grid = Grid(gammas=(2,), k_maxes=(1,), epsilons=(0.0,))
    found = plan(traces, Hardware(Costs.of_ratio(10.0)), policies=["specbranch"], grid=grid)
    assert sorted(each.name for each in found.best) == ["specbranch overlap", "specbranch serial"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gammas": ()}, "gammas was empty"),
        ({"gammas": (0,)}, "gamma was 0; it must be in 1 .. 64"),
        ({"epsilons": (2.0,)}, "epsilon was 2.0"),
    ],
)
def test_bad_grids(given: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(**given)  # type: ignore[arg-type]
