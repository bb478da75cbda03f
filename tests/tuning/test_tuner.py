"""The tuner against machines of which the best way to decode is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from tuning.world import World, fixed_speed, tuned_speed

from specbranch.session import Settings
from specbranch.tuning import Arm, Outcome, Stretch, Tuner, arms_of
from specbranch.tuning.tuner import LONGEST, LOSS, SWEEPS

SETTINGS = Settings(gamma=6, k_max=4)
TOKENS = 20000
KNOWN = 100_000  # tokens, from which a speed is known to half a percent
WORLDS = {
    "two devices, a good draft": (World(alpha=0.8, speed_ratio=15), "specbranch"),
    "two devices, a bad draft": (World(alpha=0.45, speed_ratio=15), "specbranch"),
    "one device, rows cost much": (
        World(alpha=0.6, speed_ratio=6, slope=0.3, parallel=False), "sps",
    ),
    "a draft that knows nothing": (World(alpha=0.1, speed_ratio=3, slope=0.2), "ar"),
}  # fmt: skip


@pytest.mark.parametrize("unit", [1e-4, 1e-2], ids=["short rounds", "long rounds"])
@pytest.mark.parametrize("name", WORLDS)
def test_it_finds_the_best_arm(name: str, unit: float) -> None:
    """Learning included, at most 3 % behind the best arm, the mean of three runs."""
    world, policy = WORLDS[name]
    world = replace(world, unit=unit)
    speeds = {arm: fixed_speed(world, arm, TOKENS) for arm in arms_of(SETTINGS)}
    best = max(speeds, key=speeds.__getitem__)
    assert best.policy == policy, "the world is not what its name says"
    world.jitter = 0.1
    known = {arm: fixed_speed(world, arm, KNOWN) for arm in (best, Arm("ar"))}
    tuned = []
    for seed in range(3):
        world.rng = np.random.default_rng(seed)
        tuned.append(tuned_speed(world, SETTINGS, TOKENS)[0])
    assert np.mean(tuned) > 0.97 * known[best], (best, tuned, known)
    assert min(tuned) > 0.97 * known[Arm("ar")], (tuned, known)


def test_a_machine_that_is_busy_now_and_then_does_not_mislead_it() -> None:
    """Three times as slow in every other stretch, each of which several choices fall into."""
    speeds = []
    for seed in range(3):
        kind = {"alpha": 0.7, "speed_ratio": 6, "slope": 0.15, "parallel": False, "seed": seed}
        world = World(**kind, jitter=0.15, phase=2000.0)
        best = fixed_speed(World(**kind, jitter=0.15, phase=2000.0), Arm("sps", 2), TOKENS)
        speeds.append(tuned_speed(world, SETTINGS, TOKENS)[0] / best)
    assert np.mean(speeds) > 0.97, speeds


@pytest.mark.parametrize(("seconds", "turn"), [(0.0005, 12), (0.002, 7), (0.006, 5), (0.05, 4)])
def test_turns_of_long_rounds_are_short(seconds: float, turn: int) -> None:
    """Learning costs a share of a request that does not grow with the model."""
    tuner = Tuner(SETTINGS, clock=lambda: 0.0)
    first, second = (_rounds_of_next(tuner, seconds) for _ in range(2))
    assert (first, second) == (6, turn), "before the first nothing is known of rounds"


def test_a_chain_that_never_ends_puts_a_change_off_by_one_turn() -> None:
    """A good draft hits again and again; what is dropped is less than what a bad arm loses."""
    tuner = Tuner(SETTINGS, clock=lambda: 0.0)
    _rounds_of_next(tuner, 0.05)
    assert _rounds_of_next(tuner, 0.05, has_chain=True) == 2 * 4


def test_rounds_that_a_request_cuts_tell_nothing_of_their_arm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are short and bring little; others stand in for them, as far as there are any."""
    tuner = Tuner(SETTINGS, clock=lambda: 0.0)
    while tuner.next_arm() != Arm("sps", SETTINGS.gamma):
        _rounds_of_next(tuner, 0.05)
    stretch, rounds, counted = tuner.stretch, 0, _counted_by(tuner, monkeypatch)
    while tuner.stretch is stretch:
        is_cut = rounds % 2 > 0
        drafted = 1 if is_cut else SETTINGS.gamma
        outcome = Outcome(drafted, drafted, is_cut=is_cut)
        tuner.observe(stretch, [0.01 if is_cut else 0.05], [outcome])
        rounds += 1
        tuner.next_arm()
    assert rounds == 2 * stretch.rounds - 1, "the last one was whole"
    assert set(stretch.seconds) == {0.05}
    assert len([each for each in counted if not each.is_cut]) == len(stretch.seconds) > 0


def test_a_trial_waits_for_rounds_that_no_beginning_slows_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What they bring counts, and their seconds do not."""
    tuner = Tuner(SETTINGS, clock=lambda: 0.0)
    _rounds_of_next(tuner, 0.05)
    tuner.next_arm()
    stretch, slow = tuner.stretch, [False, False, True, True, False, False]
    counted = _counted_by(tuner, monkeypatch)
    for idx, each in enumerate(slow):
        assert not stretch.is_over, idx
        tuner.observe(stretch, [None if each else 0.05], [Outcome(stretch.arm.gamma, 0)])
    assert stretch.is_over and stretch.rounds == 4 and stretch.warm_up == 1
    assert (len(stretch.seconds), len(counted)) == (3, 5)


def test_both_ends_of_a_stretch_stand_beside_what_ran_around_it() -> None:
    """A machine changes in between, so the whole of it is nobody's neighbour."""
    arm = Arm("sps", 3)
    stretch = Stretch(arm, 20, is_trial=False)
    stretch.add([0.01] * 8 + [0.05] * 12, [Outcome(3, 1)] * 20)
    assert stretch.turns() == [(arm, pytest.approx(0.01)), (arm, pytest.approx(0.05))]
    trial = Stretch(arm, 6)
    trial.add([0.09, 0.09, 0.01, 0.03, 0.01, 0.03], [Outcome(3, 1)] * 6)
    assert trial.turns() == [(arm, pytest.approx(0.02))]


def test_families_lose_alike_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are not far behind get more turns than those that cost a lot."""
    tuner = _swept_tuner()
    speed = np.array([-0.5 if arm.k_max else 0.0 if arm.gamma else -0.1 for arm in tuner.arms])
    monkeypatch.setattr(tuner, "speeds", lambda: (speed, 1e-6 * np.eye(len(speed))))
    turns = _turns_of_families(tuner, 600)
    assert turns["sps"] == 0 and turns["specbranch serial"] > 2, turns
    assert turns["ar"] > 2 * turns["specbranch serial"], turns


def test_a_family_that_may_be_the_best_one_leaves_some_turns_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong belief that an arm is far behind is put right, even where others are always drawn."""
    tuner = _swept_tuner()
    speed = np.array([-0.02 if arm.draft_stage == "overlap" else -0.5 for arm in tuner.arms])
    speed[[arm.policy != "specbranch" for arm in tuner.arms]] = -0.4
    best = tuner.arms.index(Arm("specbranch", SETTINGS.gamma, SETTINGS.k_max, "serial"))
    speed[best] = 0.0
    spread = np.where(speed == -0.02, 0.04, 1e-6)
    monkeypatch.setattr(tuner, "speeds", lambda: (speed, np.diag(spread)))
    turns = _turns_of_families(tuner, 3000)
    assert turns["specbranch overlap"] > turns["sps"] > 2 and turns["ar"] > 2, turns


def test_a_challenger_is_charged_for_what_follows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changing to it and back, and first rounds that are slower than later ones."""
    tuner = _swept_tuner()
    speed = np.array([0.0 if arm == tuner.best else -0.5 for arm in tuner.arms])
    monkeypatch.setattr(tuner, "speeds", lambda: (speed, 1e-6 * np.eye(len(speed))))
    while tuner.stretch.challenger is None:
        _rounds_of_next(tuner, 0.005)
    challenger, before, wanted = tuner.stretch.challenger, dict(tuner._spent), 0.0
    while tuner.stretch.challenger == challenger:
        stretch = tuner.stretch
        while tuner.stretch is stretch:
            is_early = stretch.done < stretch.warm_up
            changing = 0.003 if stretch.done == 0 else 0.0
            wanted += changing + 0.002 * is_early
            seconds = 0.007 if is_early else 0.005
            tuner.observe(stretch, [seconds], [Outcome(0, 0)], changing=changing)
            tuner.next_arm()
        wanted += stretch.behind * stretch.done * 0.005
    spent = {name: tuner._spent[name] - before[name] for name in before}
    assert spent.pop(challenger.family) == pytest.approx(wanted) and wanted > 0.01
    assert not any(spent.values())


def test_while_ar_runs_nothing_is_chosen_before_challengers_may_run() -> None:
    """With a draft a look tells something, so that a choice may be another one."""
    rounds = {}
    for best in (Arm("ar"), Arm("sps", 2)):
        tuner = _swept_tuner()
        tuner.best, tuner._choosing, tuner._seconds = best, 1e-4, 10.0
        tuner._spent["sps"] = tuner._allowance() + LOSS * 1.0  # a second's worth
        rounds[best.policy] = tuner._rounds_to_choose(Stretch(best, 8, seconds=[0.005] * 8))
    assert rounds["ar"] == pytest.approx(200, abs=1) and rounds["sps"] == 8
    tuner.best, tuner._spent["sps"] = Arm("ar"), 1e6
    assert tuner._rounds_to_choose(Stretch(Arm("ar"), 8, seconds=[0.005])) == LONGEST


@pytest.mark.parametrize(
    ("seconds", "lengths"), [(5e-4, (24, 12)), (2e-3, (12, 7)), (0.05, (4, 4))]
)
def test_turns_of_short_rounds_are_longer(seconds: float, lengths: tuple[int, int]) -> None:
    """Those of ``ar`` more so: behind a draft's its rounds get faster for longer."""
    tuner, before = _swept_tuner(), Stretch(Arm("sps", 2), 8, seconds=[seconds])
    turns = [Stretch(arm, 6) for arm in (Arm("ar"), Arm("sps", 3))]
    assert tuple(tuner._rounds_of_a_turn(turn, before) for turn in turns) == lengths
    far = tuner._rounds_of_a_turn(Stretch(Arm("ar"), 6, behind=0.3), before)
    assert far == lengths[1], "it need not be known to a few percent"


def test_hiccups_and_machines_that_change_are_nobodys_overhead() -> None:
    arm = Arm("sps", 3)
    for seconds, slower in (([0.01] * 4 + [0.05] * 40, 0.02), ([0.01] * 3 + [0.5], 0.01 * 0.5)):
        stretch = Stretch(arm, 60, turn=6, changing=0.003, is_trial=False)
        took = [0.02, 0.02, *seconds]
        stretch.add(took, [Outcome(3, 1)] * len(took))
        assert stretch.warm_up == 2
        assert stretch.overhead == pytest.approx(0.003 + slower, abs=0.006)


def test_requests_that_begin_are_not_charged_to_the_last_challenger() -> None:
    tuner = _swept_tuner()
    tuner.stretch = Stretch(Arm("sps", 2), 400, challenger=Arm("ar"), is_trial=False)
    stretch = tuner.stretch
    for _ in range(10):
        tuner.observe(stretch, [0.005] * 8, [Outcome(2, 0)] * 8, changing=0.001)
    assert stretch.changing == 0.001


def test_requests_that_are_too_short_for_an_arm_do_not_keep_it_on() -> None:
    tuner = Tuner(SETTINGS, clock=lambda: 0.0)
    arms = set()
    for _ in range(400):
        arms.add(tuner.next_arm())
        tuner.observe(tuner.stretch, [0.05], [Outcome(0, 0, is_cut=True)])
    assert len(arms) > 3


@pytest.mark.parametrize("is_trial", [True, False])
def test_rounds_that_wait_for_a_chain_to_end_do_not_count(
    is_trial: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They all have a chain, so they are not like the arm's others."""
    tuner = Tuner(SETTINGS, clock=lambda: 0.0)
    _rounds_of_next(tuner, 0.05)
    tuner.next_arm()
    stretch = tuner.stretch
    if not is_trial:
        stretch.is_trial, stretch.rounds = False, 40
    counted = _counted_by(tuner, monkeypatch)
    assert _rounds_of_next(tuner, 0.05, has_chain=True) > stretch.rounds
    assert len(counted) == len(stretch.seconds) == stretch.rounds - stretch.warm_up > 0


def _counted_by(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    """The rounds, from now on, that say what an arm brings."""
    counted: list[Outcome] = []
    observe = tuner._gain.observe

    def watched(arm: Arm, seen: Sequence[Outcome], first: int) -> None:
        counted.extend(seen[first:])
        observe(arm, seen, first)

    monkeypatch.setattr(tuner._gain, "observe", watched)
    return counted


def _swept_tuner() -> Tuner:
    """What comes before challengers is over."""
    tuner = Tuner(SETTINGS, clock=lambda: 0.0)
    tuner._sweeps = SWEEPS
    tuner._plan.clear()
    return tuner


def _turns_of_families(tuner: Tuner, stretches: int) -> Counter[str]:
    """Of challengers."""
    turns: Counter[str] = Counter()
    for _ in range(stretches):
        _rounds_of_next(tuner, 0.005)
        turns[tuner.stretch.arm.family] += tuner.stretch.behind > 0
    return turns


def _rounds_of_next(tuner: Tuner, seconds: float, *, has_chain: bool = False) -> int:
    """How many rounds the next stretch takes."""
    arm, rounds, stretch = tuner.next_arm(has_chain=has_chain), 0, tuner.stretch
    while tuner.stretch is stretch:
        tuner.observe(stretch, [seconds], [Outcome(arm.gamma, 0)])
        rounds += 1
        tuner.next_arm(has_chain=has_chain)
    return rounds


def test_what_a_sweep_tells_rules_out_arms_before_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tuner = Tuner(SETTINGS, clock=lambda: 0.0)
    count = len(tuner.arms)
    speed, sure = np.zeros(count), 1e-6 * np.eye(count)
    monkeypatch.setattr(tuner, "speeds", lambda: (speed, sure))
    while tuner.stretch.arm.draft_stage != "serial":
        _rounds_of_next(tuner, 0.05)  # landmarks
    _rounds_of_next(tuner, 0.05)
    speed[3:] = -1.0  # that is what the first turn of the next sweep tells
    turns = []
    for _ in range(6):
        _rounds_of_next(tuner, 0.05)
        turns.append(tuner.arms.index(tuner.stretch.arm))
    assert set(turns) == {0, 1, 2}, turns
