"""Tokens a round: what runs of right guesses say, and what branches are worth."""

from __future__ import annotations

import numpy as np
import pytest
from tuning.world import World

from specbranch.session import Settings
from specbranch.tuning import Arm, Outcome, arms_of
from specbranch.tuning.gain import Gain

SETTINGS = Settings(gamma=6, k_max=4)
ARMS = arms_of(SETTINGS)


def new_gain(seed: int = 0) -> Gain:
    return Gain(ARMS, np.random.default_rng(seed))


def run(gain: Gain, arm: Arm, world: World, rounds: int, turn: int = 20) -> float:
    """Tokens a round that came, of rounds told a turn at a time.

    The first two are not like others, as what was drafted for them is dropped.
    """
    tokens = 0
    for _ in range(rounds // turn):
        world.switch()
        rounds_of_turn = [world.round(arm) for _ in range(turn)]
        gain.observe(arm, [each.outcome for each in rounds_of_turn], first=2)
        tokens += sum(each.tokens for each in rounds_of_turn[2:])
    return tokens / (rounds // turn * (turn - 2))


def believed(gain: Gain, arm: Arm) -> float:
    return float(np.exp(gain.belief().mean[ARMS.index(arm)]))


@pytest.mark.parametrize(
    "arm",
    [Arm("sps", 4), Arm("specbranch", 6, 2, "overlap"), Arm("specbranch", 6, 2, "serial")],
    ids=lambda arm: arm.family,
)
def test_what_an_arm_brings_is_learnt(arm: Arm) -> None:
    found = []
    for seed in range(4):
        gain = new_gain(seed)
        brought = run(gain, arm, World(alpha=0.7, speed_ratio=8, seed=seed), 4000)
        found.append(believed(gain, arm) / brought)
    assert np.mean(found) == pytest.approx(1.0, abs=0.04)


@pytest.mark.parametrize("runs", [Arm("sps", 6), Arm("specbranch", 6, 4, "serial")], ids=str)
def test_one_arm_tells_of_all_lengths(runs: Arm) -> None:
    """Also of longer ones than ran, and from rounds with branches."""
    gain = new_gain()
    run(gain, runs, World(alpha=0.6, speed_ratio=8), 2000)
    for gamma in (1, 2, 4, 6):
        wanted = sum(0.6**j for j in range(gamma + 1))
        assert gain.predict(Arm("sps", gamma)) == pytest.approx(wanted, rel=0.07)


@pytest.mark.parametrize("turn", [6, 20])
@pytest.mark.parametrize("alpha", [0.4, 0.7])
def test_what_branches_are_worth_is_not_wrong_for_short_turns(alpha: float, turn: int) -> None:
    """Rounds of sps that a turn cuts count for as much as they should; the mean of some worlds."""
    overlap, sps = Arm("specbranch", 6, 4, "overlap"), Arm("sps", 6)
    sps_brings = sum(alpha**j for j in range(7))
    found, wanted = [], []
    for seed in range(4):
        gain, world = new_gain(seed), World(alpha=alpha, speed_ratio=8, seed=seed)
        wanted.append(run(gain, overlap, world, 8000, turn) / sps_brings)
        found.append(believed(gain, overlap) / believed(gain, sps))
    assert np.mean(wanted) < 0.9, "there is something to learn"
    assert np.mean(found) == pytest.approx(np.mean(wanted), rel=0.03)


def test_branches_are_compared_on_the_text_they_ran_on() -> None:
    """They ran on hard texts only, and on easy ones they are thought to be as much worse."""
    overlap, sps = Arm("specbranch", 6, 4, "overlap"), Arm("sps", 6)
    gain = new_gain()
    run(gain, overlap, World(alpha=0.4, speed_ratio=8), 1500)
    hard = believed(gain, overlap) / believed(gain, sps)
    run(gain, sps, World(alpha=0.85, speed_ratio=8), 1500)
    assert hard < 0.9
    assert believed(gain, overlap) / believed(gain, sps) == pytest.approx(hard, rel=0.05)
    assert believed(gain, overlap) > 1.5 * sum(0.4**j for j in range(7)), "texts are easy now"


def test_rounds_that_do_not_count_say_nothing_of_branches() -> None:
    """Of the first ones of a stretch, only what they show of the text is learnt."""
    arm, world = Arm("specbranch", 6, 4, "overlap"), World(alpha=0.7, speed_ratio=8)
    gain = new_gain()
    before = gain.belief()
    gain.observe(arm, [world.round(arm).outcome for _ in range(400)], first=400)
    after = gain.belief()
    at, sps = ARMS.index(arm), ARMS.index(Arm("sps", 6))
    assert after.mean[at] == after.mean[sps] != before.mean[sps]
    assert after.covariance[at, at] - after.covariance[sps, sps] == pytest.approx(
        before.covariance[at, at] - before.covariance[sps, sps]
    )


def test_a_round_that_a_request_cuts_says_nothing_of_branches_and_ends_a_run() -> None:
    """Of two engines one has a cut round, of many right guesses, between any two others."""
    arm, (gain, cut) = Arm("specbranch", 4, 2), (new_gain(), new_gain())
    for _ in range(200):
        gain.observe(arm, [Outcome(2, 2, is_right=False), Outcome(0, 0, is_right=False)])
        cut.observe(
            arm,
            [
                Outcome(2, 2, is_right=False),
                Outcome(4, 4, is_right=False, is_cut=True),
                Outcome(0, 0, is_right=False),
            ],
        )
    at = ARMS.index(arm)
    assert cut._rounds[at] == gain._rounds[at] == 400
    assert cut._wanted[at] == gain._wanted[at] == 400


def test_an_arm_with_branches_tells_of_those_that_are_like_it() -> None:
    gain, arm = new_gain(), Arm("specbranch", 6, 4, "serial")
    run(gain, arm, World(alpha=0.7, speed_ratio=8), 2000)
    found = gain.belief()
    spread = [
        found.covariance[idx, idx]
        for idx in map(ARMS.index, (arm, Arm("specbranch", 6, 2, "serial"),
                                    Arm("specbranch", 6, 4, "overlap")))
    ]  # fmt: skip
    assert spread[0] < spread[1] < spread[2] / 2


def test_an_acceptance_of_few_guesses_is_doubted() -> None:
    few, many = new_gain(), new_gain()
    run(few, Arm("sps", 4), World(0.7, 8), 20)
    run(many, Arm("sps", 4), World(0.7, 8), 2000)
    at = ARMS.index(Arm("sps", 4))
    assert few.belief().covariance[at, at] > 4.0 * many.belief().covariance[at, at]
    assert few.belief().covariance[0, at] == few.belief().mean[0] == 0.0, "what ar brings is known"


def test_another_text_is_noticed() -> None:
    """Whoever runs: here branches do, and ``sps`` is asked for."""
    for arm in (Arm("sps", 3), Arm("specbranch", 4, 2)):
        gain = new_gain()
        run(gain, arm, World(alpha=0.9, speed_ratio=8), 3000)
        before = gain.predict(Arm("sps", 3))
        run(gain, arm, World(alpha=0.4, speed_ratio=8), 5000)
        wanted = 1 + 0.4 + 0.16 + 0.064
        assert before > 2 * wanted
        assert gain.predict(Arm("sps", 3)) == pytest.approx(wanted, rel=0.1)


def test_while_no_draft_runs_what_is_known_of_it_fades() -> None:
    """Plain rounds change no prediction, but make it less sure, and a few new chains count more."""
    arm = Arm("sps", 4)
    few = World(alpha=0.3, speed_ratio=8, seed=1)
    chains = [few.round(arm).outcome for _ in range(60)]
    moved, sure = [], []
    for plain in (0, 3000):
        gain = new_gain()
        run(gain, arm, World(alpha=0.85, speed_ratio=8), 2000)
        before = gain.predict(arm)
        gain.observe(Arm("ar"), [Outcome(0, 0)] * plain)
        assert gain.predict(arm) == before
        at = ARMS.index(arm)
        sure.append(gain.belief().covariance[at, at])
        gain.observe(arm, chains)
        moved.append(before - gain.predict(arm))
    assert sure[1] > 3 * sure[0]
    assert moved[1] > 2 * moved[0] > 0


def test_after_many_plain_rounds_an_acceptance_is_doubted_as_at_first() -> None:
    gain, at = new_gain(), ARMS.index(Arm("sps", 6))
    first = gain.belief()
    run(gain, Arm("sps", 4), World(0.7, 8), 2000)
    gain.observe(Arm("ar"), [Outcome(0, 0)] * 10**6)
    found = gain.belief()
    assert np.isfinite(found.mean).all()
    assert found.covariance[at, at] == pytest.approx(first.covariance[at, at])


def test_a_draft_that_is_always_wrong_brings_a_token_a_round() -> None:
    gain, arm = new_gain(), Arm("specbranch", 4, 4)
    gain.observe(arm, [Outcome(0, 0, is_right=False)] * 4000)
    assert gain.predict(arm) == pytest.approx(1.0, abs=0.01)
    assert gain.predict(Arm("sps", 6)) == pytest.approx(1.0, abs=0.01)
