"""The timeline says what each policy's lanes did: as many forwards and tokens as its counters."""

from __future__ import annotations

import pytest

from specbranch import Engine, SamplingParams
from specbranch.lanes import SerialLanes
from specbranch.policies import POLICIES
from specbranch.testing.table_model import TableModel
from specbranch.timeline import Timeline

PARAMS = SamplingParams(max_new_tokens=40, temperature=0.8, seed=5)


def run(policy: str, **settings: object) -> tuple[object, Timeline]:
    target, draft = (TableModel.random(vocab=8, seed=seed) for seed in (1, 2))
    engine = Engine(target, draft, policy=policy, gamma=3, lanes=SerialLanes(1), **settings)
    timeline = Timeline()
    return engine.generate([1, 2, 3], PARAMS, timeline=timeline), timeline


@pytest.mark.parametrize("stage", ["serial", "overlap"])
@pytest.mark.parametrize("policy", POLICIES)
def test_it_agrees_with_the_counters(policy: str, stage: str) -> None:
    given = {} if policy == "auto" else {"draft_stage": stage}  # which chooses it
    result, timeline = run(policy, **given)
    stats, spans, rounds = result.stats, timeline.spans, timeline.rounds
    forwards = {
        lane: sum(
            span.forwards
            for span in spans
            if span.lane == lane and span.work not in ("prefill", "verify")
        )
        for lane in ("target", "draft")
    }
    assert forwards == {"target": stats.target_forwards, "draft": stats.draft_forwards}
    assert len(rounds) == stats.rounds
    assert sum(each.num_committed for each in rounds) == stats.committed
    assert sum(each.num_accepted for each in rounds) == stats.accepted_chain
    assert [each.position for each in rounds] == [
        3 + sum(before.num_committed for before in rounds[:idx]) for idx in range(len(rounds))
    ]
    assert {span.round for span in spans} == set(range(len(rounds)))


def test_spans_of_a_lane_do_not_overlap() -> None:
    _, timeline = run("specbranch")
    for lane in ("target", "draft"):
        ends = 0.0
        for span in (span for span in timeline.spans if span.lane == lane):
            assert ends <= span.start <= span.end, span
            ends = span.end


def test_target_rows_are_chain_and_last_token() -> None:
    _, timeline = run("sps")
    rows = [span.rows for span in timeline.spans if span.work == "forward"]
    assert rows == [1 + each.num_drafted for each in timeline.rounds]
