"""Tokens a round: predicted from acceptance, corrected by what came."""

from __future__ import annotations

import numpy as np
import pytest
from tuning.world import World

from specbranch.session import Settings
from specbranch.tuning import Arm, Outcome, arms_of
from specbranch.tuning.acceptance import Acceptance, Rate
from specbranch.tuning.gain import Gain

SETTINGS = Settings(gamma=6, k_max=4)


def taught(arm: Arm, world: World, rounds: int) -> tuple[Gain, float]:
    """What ``rounds`` rounds of an arm teach, and the tokens that a round of it brings."""
    gain, tokens = Gain(arms_of(SETTINGS), SETTINGS.gamma), 0
    for _ in range(rounds):
        seen = world.round(arm)
        gain.observe(arm, [seen.outcome])
        tokens += seen.tokens
    return gain, tokens / rounds


@pytest.mark.parametrize(
    "arm",
    [Arm("sps", 4), Arm("specbranch", 4, 2, "overlap"), Arm("specbranch", 4, 2, "serial")],
    ids=lambda arm: arm.family,
)
def test_predictions_come_true(arm: Arm) -> None:
    """What is predicted for an arm is what it brings where acceptance is i.i.d."""
    found = [taught(arm, World(alpha=0.7, speed_ratio=8, seed=seed), 4000) for seed in range(4)]
    predicted = np.mean([gain.predict(arm) for gain, _ in found])
    assert predicted == pytest.approx(np.mean([tokens for _, tokens in found]), rel=0.04)


def test_one_length_tells_of_the_others() -> None:
    world = World(alpha=0.6, speed_ratio=8)
    gain, _ = taught(Arm("sps", 6), world, 2000)
    for gamma in (1, 2, 4):
        wanted = sum(0.6**j for j in range(gamma + 1))
        assert gain.predict(Arm("sps", gamma)) == pytest.approx(wanted, rel=0.05)


def test_what_came_corrects_what_was_predicted() -> None:
    """An arm that brings a tenth less than it promises, for long."""
    gain, _ = taught(Arm("sps", 4), World(alpha=0.7, speed_ratio=8), 1000)
    arms = arms_of(SETTINGS)
    arm, promised = arms.index(Arm("sps", 4)), gain.predict(Arm("sps", 4))
    before = gain.belief()
    gain.add(Arm("sps", 4), 0.9 * promised * 3000, 3000)
    after = gain.belief()
    assert before.mean[arm] == pytest.approx(np.log(promised))
    assert after.mean[arm] == pytest.approx(np.log(0.9 * promised), abs=0.02)
    assert after.covariance[arm, arm] < before.covariance[arm, arm]
    assert after.mean[0] == 0.0, "ar brings one token a round"


def test_an_acceptance_of_few_chains_is_doubted() -> None:
    arms = arms_of(SETTINGS)
    few, many = (taught(Arm("sps", 4), World(0.7, 8), rounds)[0].belief() for rounds in (8, 2000))
    at = arms.index(Arm("sps", 4))
    assert few.covariance[at, at] > 4.0 * many.covariance[at, at]
    assert few.covariance[0, at] == 0.0, "what ar brings is known"


def test_another_text_is_noticed() -> None:
    arm = Arm("sps", 3)
    gain, before = taught(arm, World(alpha=0.9, speed_ratio=8), 3000)
    world = World(alpha=0.4, speed_ratio=8)
    for _ in range(1200):
        gain.observe(arm, [world.round(arm).outcome])
    wanted = 1 + 0.4 + 0.16 + 0.064
    assert before > 2 * wanted
    assert gain.predict(arm) == pytest.approx(wanted, rel=0.1)


def test_another_text_is_noticed_for_policies_that_do_not_run() -> None:
    """``sps`` was judged on an easy text; ``specbranch`` goes on in a hard one, and back."""
    gain, easy = taught(Arm("sps", 4), World(alpha=0.85, speed_ratio=8), 2000)
    other = Arm("specbranch", 4, 2)
    found = []
    for alpha in (0.4, 0.85):
        world = World(alpha=alpha, speed_ratio=8)
        for _ in range(1500):
            gain.observe(other, [world.round(other).outcome])
        found.append(gain.predict(Arm("sps", 4)))
    hard = sum(0.4**j for j in range(5))
    assert found[0] < (easy + hard) / 2, (found, easy, hard)
    assert found[1] == pytest.approx(easy, rel=0.1)


def test_while_no_draft_runs_what_is_known_of_it_fades() -> None:
    """Plain rounds change no prediction, but make it less sure, and a few new chains count more."""
    arm = Arm("sps", 4)
    few = World(alpha=0.3, speed_ratio=8, seed=1)
    chains = [few.round(arm).outcome for _ in range(60)]
    moved, sure = [], []
    for plain in (0, 10_000):
        gain, _ = taught(arm, World(alpha=0.85, speed_ratio=8), 2000)
        before = gain.predict(arm)
        gain.observe(Arm("ar"), [Outcome(0, 0)] * plain)
        assert gain.predict(arm) == pytest.approx(before, rel=0.05)
        at = arms_of(SETTINGS).index(arm)
        sure.append(gain.belief().covariance[at, at])
        gain.observe(arm, chains)
        moved.append(before - gain.predict(arm))
    assert sure[1] > 3 * sure[0]
    assert moved[1] > 2 * moved[0] > 0


def test_branches_that_are_cut_at_once_are_learnt() -> None:
    """After each hit nothing is kept: a chain is always empty, and a round one token."""
    gain, arm = Gain(arms_of(SETTINGS), SETTINGS.gamma), Arm("specbranch", 4, 4)
    for _ in range(2000):
        gain.observe(arm, [Outcome(0, 0, hit=True, num_kept=0)])
    assert gain.predict(arm) == pytest.approx(1.0, abs=0.05)


def test_acceptance_counts_judged_tokens_only() -> None:
    """A chain of 5 that breaks at its third token says nothing of the last two."""
    acceptance = Acceptance(5, Rate())
    for _ in range(4000):
        acceptance.add([5], [2])
    survival = acceptance.survival(5)
    assert survival[:3] == pytest.approx([1.0, 1.0, 1.0], abs=0.02)
    assert survival[3] < 0.02
    assert survival[4] / survival[3] == pytest.approx(2 / 3, abs=0.05)  # unseen: the mean


@pytest.mark.parametrize("accepted", [0, 5])
def test_chains_that_always_or_never_hold(accepted: int) -> None:
    acceptance = Acceptance(5, Rate(0.0, 0.0))
    for _ in range(5000):
        acceptance.add([5], [accepted])
    assert acceptance.survival(5)[-1] == pytest.approx(accepted / 5, abs=0.01)


def test_an_untried_number_of_branches_gets_the_benefit_of_the_doubt() -> None:
    acceptance = Acceptance(4, Rate())
    for _ in range(50):
        acceptance.add_hit(1, hit=False)
        acceptance.add_hit(1, hit=True)
    assert acceptance.hit_rate(1) == pytest.approx(0.5, abs=0.03)
    assert acceptance.hit_rate(4) > 0.7
    for _ in range(100):
        acceptance.add_hit(4, hit=False)
    assert acceptance.hit_rate(4) < 0.15


def test_a_policy_that_hardly_ran_is_thought_to_be_like_the_others() -> None:
    """Few chains are of few texts; of many it is its own that count."""
    shared = Rate()
    others, own = Acceptance(4, shared), Acceptance(4, shared)
    for idx in range(1000):
        others.add([4], [4 * (idx % 4 > 0)])
        if idx % 50 == 49:
            own.add([4], [0])
    assert own.survival(1)[1] > 0.65 * others.survival(1)[1]
    for _ in range(1000):
        own.add([4], [0])
    assert own.survival(1)[1] < 0.1
