"""``policy="auto"``: the tokens of ``ar``, through every change of arm.

Here the arms follow a script, so that no choice hangs on this machine's timing; what the tuner
would choose is tested in tests/tuning.
"""

from __future__ import annotations

import itertools
import re
from unittest.mock import Mock

import pytest
import torch

from specbranch import Engine, SamplingParams
from specbranch.lanes import SerialLanes
from specbranch.policies import Auto
from specbranch.session import Settings
from specbranch.testing.table_model import TableModel
from specbranch.timeline import DRAFT, Timeline
from specbranch.tuning import Arm, Outcome, Tuner, arms_of
from specbranch.tuning.gain import Gain
from specbranch.tuning.tuner import SWEEPS, Stretch


def follow_a_script(monkeypatch: pytest.MonkeyPatch, period: int = 2) -> set[Arm]:
    """All arms, one after the other, ``period`` rounds each; returns those that ran."""
    turns, ran = itertools.count(), set()

    def next_arm(self: Tuner, *, has_chain: bool = False) -> Arm:
        arm = self.arms[next(turns) * 7 % len(self.arms)]
        self.stretch = Stretch(arm, period)
        ran.add(arm)
        return arm

    monkeypatch.setattr(Tuner, "next_arm", next_arm)
    return ran


@pytest.mark.parametrize("period", [1, 5])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_coupled_gives_the_sequence_of_ar(
    temperature: float, period: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = follow_a_script(monkeypatch, period)
    target = TableModel.random(11, seed=5, scale=1.5)
    draft = TableModel(target.table + TableModel.random(11, seed=6).table)
    plain = Engine(target, policy="ar", verify="coupled")
    engine = Engine(target, draft, policy="auto")
    for seed in range(8):
        params = SamplingParams(max_new_tokens=150, temperature=temperature, seed=seed)
        wanted = plain.generate([0, 1], params)
        given = engine.generate([0, 1], params)
        assert given.tokens == wanted.tokens
        stats = given.stats
        # What is left was in the chain when the request ended.
        left = stats.drafted - stats.accepted - stats.rolled_back - stats.pruned
        assert 0 <= left <= engine.settings.gamma
    assert ran == set(arms_of(engine.settings))


def test_what_it_learns_serves_the_next_request() -> None:
    target, draft = (TableModel.random(8, seed=seed) for seed in (1, 2))
    engine = Engine(target, draft, policy="auto", lanes=SerialLanes(1))
    params = SamplingParams(max_new_tokens=60, temperature=1.0)
    engine.generate([1, 2], params)
    method = engine._method
    assert isinstance(method, Auto) and method.tuner is not None
    tuner = method.tuner
    before = sum(tuner.rounds.values())
    engine.generate([1, 2], params)
    assert engine._method is not method and engine._method.tuner is tuner
    assert sum(tuner.rounds.values()) > before


def test_arms_stay_within_the_settings() -> None:
    arms = arms_of(Settings(gamma=5, k_max=3))
    assert {arm.gamma for arm in arms} == {0, 1, 2, 3, 4, 5}
    assert {arm.k_max for arm in arms} == {0, 2, 3}
    assert Arm("ar") in arms and len(set(arms)) == len(arms)


def test_the_callers_timeline_is_filled_too() -> None:
    target, draft = (TableModel.random(8, seed=seed) for seed in (1, 2))
    engine, timeline = Engine(target, draft, policy="auto"), Timeline()
    stats = engine.generate([1, 2], SamplingParams(max_new_tokens=50), timeline=timeline).stats
    assert len(timeline.rounds) == stats.rounds
    assert {span.round for span in timeline.spans} == set(range(stats.rounds))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"verify": "rejection"}, "verify was 'rejection'; with policy 'auto'"),
        ({"draft_stage": "serial"}, "draft_stage was 'serial'; policy 'auto' chooses it"),
        ({"rounds": "device"}, "policy was 'auto'; on the device it must be"),
    ],
    ids=["verify", "draft_stage", "rounds"],
)
def test_what_it_does_not_take(given: dict, message: str) -> None:
    target, draft = (TableModel.random(8, seed=seed) for seed in (1, 2))
    with pytest.raises(ValueError, match=re.escape(message)):
        Engine(target, draft, policy="auto", **given)


def test_models_elsewhere_are_refused() -> None:
    target, draft = (TableModel.random(8, seed=seed) for seed in (1, 2))
    target.device = torch.device("cuda")
    with pytest.raises(ValueError, match="target was on cuda; policy 'auto' times forwards"):
        Engine(target, draft, policy="auto", lanes=SerialLanes(1), rounds="host")


def test_the_real_tuner_gives_the_tokens_of_ar() -> None:
    """Whatever the clock says: arms as they come."""
    target = TableModel.random(11, seed=5, scale=1.5)
    draft = TableModel(target.table + TableModel.random(11, seed=6).table)
    plain = Engine(target, policy="ar", verify="coupled")
    engine = Engine(target, draft, policy="auto", epsilon=0.4)
    for seed in range(20):
        params = SamplingParams(max_new_tokens=100, temperature=1.0, seed=seed)
        assert engine.generate([0, 1], params).tokens == plain.generate([0, 1], params).tokens
    tuner = engine._method.tuner
    ran = {arm.family for arm, rounds in tuner.rounds.items() if rounds}
    assert ran == {arm.family for arm in tuner.arms}, "all families had a trial"
    assert tuner._sweeps == SWEEPS, "it has settled, so that rounds went by without a look, too"


def settled_engine(arm: Arm) -> Engine:
    """One that has chosen ``arm`` and runs it for long."""
    target, draft = (TableModel.random(8, seed=seed) for seed in (1, 2))
    engine = Engine(target, draft, policy="auto", lanes=SerialLanes(1))
    engine._method.tuner.stretch = Stretch(arm, 10**6, is_trial=False)
    return engine


@pytest.mark.parametrize(("arm", "reads"), [(Arm("ar"), False), (Arm("sps", 3), True)])
def test_the_draft_reads_a_prompt_where_it_is_asked(
    arm: Arm, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeline, prompt = Timeline(), [1, 2, 3, 4, 5]
    params = SamplingParams(max_new_tokens=40, temperature=1.0)
    engine = settled_engine(arm)
    made = Mock(wraps=engine.draft.new_state)
    monkeypatch.setattr(engine.draft, "new_state", made)
    engine.generate(prompt, params, timeline=timeline)
    assert any(span.lane == DRAFT for span in timeline.spans) == reads
    assert made.call_count == reads, "nor does it get a state that nobody asks for"


def test_a_draft_that_is_asked_late_reads_what_it_has_missed() -> None:
    engine, timeline = settled_engine(Arm("ar")), Timeline()
    tuner, made = engine._method.tuner, []
    params = SamplingParams(max_new_tokens=40, temperature=1.0, seed=3)
    tuner.stretch = Stretch(Arm("ar"), 7, is_trial=False)
    tuner._plan = [Stretch(Arm("sps", 3), 10**6)]
    for event in engine.events([1, 2, 3, 4, 5], params, timeline=timeline):
        made += event.tokens
    plain = Engine(engine.target, policy="ar", verify="coupled")
    assert made == plain.generate([1, 2, 3, 4, 5], params).tokens
    (late,) = (span for span in timeline.spans if (span.lane, span.work) == (DRAFT, "prefill"))
    assert late.rows == 5 + 7 - 1, "the prompt and seven tokens, but for the last of them"


def reported(
    arm: Arm, look: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Outcome], list[Outcome], Stretch]:
    """Each round of three requests of a settled engine, those that count, and their stretch."""
    seen: list[Outcome] = []
    counted: list[Outcome] = []

    def observe(gain: Gain, arm: Arm, outcomes: list[Outcome], first: int) -> None:
        seen.extend(outcomes)
        counted.extend(outcomes[first:])

    monkeypatch.setattr("specbranch.tuning.tuner.LOOK", look)
    monkeypatch.setattr(Gain, "observe", observe)
    engine = settled_engine(arm)
    for seed in range(3):
        engine.generate([1, 2], SamplingParams(max_new_tokens=90, temperature=1.0, seed=seed))
    stretch = engine._method.tuner.stretch
    engine._method.renew()  # the last request's rounds, too
    return seen, counted, stretch


ARMS = [
    Arm("ar"), Arm("sps", 3), Arm("specbranch", 4, 2), Arm("specbranch", 4, 2, "serial"),
]  # fmt: skip


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: f"{arm.family} {arm.gamma}")
def test_rounds_that_are_told_together_are_counted_as_one_by_one(
    arm: Arm, monkeypatch: pytest.MonkeyPatch
) -> None:
    each, one_by_one, summed = reported(arm, 1, monkeypatch)
    later, together, total = reported(arm, 16, monkeypatch)
    assert (summed.done, one_by_one) == (total.done, together) and together
    assert len(each) == len(later) == summed.done
    right = 0
    for one, other in zip(each, later, strict=True):
        assert (one.num_drafted, one.num_accepted) == (other.num_drafted, other.num_accepted)
        assert one.is_cut == other.is_cut
        assert one.is_right == other.is_right
        right += bool(other.is_right)
    assert (right > 0) == bool(arm.k_max)
    assert any(one.is_cut for one in each) == bool(arm.gamma)


def test_rounds_at_the_beginning_of_a_request_are_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Threads that have read the prompt are busy for a while: there, 8 ms by a clock that ticks."""
    clock = Mock(perf_counter=Mock(side_effect=itertools.count(0.0, 0.001)))
    monkeypatch.setattr("specbranch.policies.auto.time", clock)
    engine, timed = settled_engine(Arm("ar")), []
    monkeypatch.setattr(
        engine._method.tuner, "observe", Mock(side_effect=lambda *a, **_: timed.append(a[1]))
    )
    for _ in range(2):
        engine.generate([1, 2], SamplingParams(max_new_tokens=10))
    engine._method.renew()
    assert [[each is not None for each in some] for some in timed] == [[False] * 4 + [True] * 6] * 2


def test_rounds_of_another_arm_are_not_added_to_the_one_that_runs() -> None:
    """Two requests at a time: one goes on to another arm before the other one tells of it."""
    tuner = Tuner(Settings(gamma=4, k_max=2, verify="coupled"))
    old = Stretch(Arm("sps", 2), 100, is_trial=False)
    tuner.stretch = Stretch(Arm("sps", 3), 100, is_trial=False, done=6)
    tuner.observe(old, [0.1] * 4, [Outcome(2, 1)] * 4)
    assert (tuner.stretch.done, tuner.stretch.seconds) == (6, [])
    tuner.observe(tuner.stretch, [0.1] * 4, [Outcome(3, 1)] * 4)
    assert (tuner.stretch.done, tuner.stretch.seconds) == (10, [0.1] * 4)


def test_a_request_that_begins_waits_for_the_round_of_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was learnt is passed on while no round teaches it."""
    engine, renew, locked = settled_engine(Arm("sps", 3)), Auto.renew, []

    def watched(policy: Auto) -> Auto:
        locked.append(engine._round_lock.locked())
        return renew(policy)

    monkeypatch.setattr(Auto, "renew", watched)
    engine.generate([1, 2], SamplingParams(max_new_tokens=5))
    assert locked == [True]


@pytest.mark.parametrize(("accepted", "is_news"), [(3, False), (0, True)])
def test_where_chains_promise_something_else_it_chooses_again_soon(
    accepted: int, is_news: bool
) -> None:
    tuner, arm = Tuner(Settings(gamma=4, k_max=2, verify="coupled")), Arm("sps", 3)
    for _ in range(300):
        tuner._gain.observe(arm, [Outcome(3, 3)])
    tuner.stretch = Stretch(arm, 10**6, is_trial=False, promise=tuner._promise(arm))
    for _ in range(8):
        tuner.observe(tuner.stretch, [0.1] * 10, [Outcome(3, accepted)] * 10)
    tuner._plan = [Stretch(Arm("ar"), 10)]
    assert (tuner.next_arm() == Arm("ar")) == is_news
