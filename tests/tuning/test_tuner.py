"""The tuner against machines of which the best way to decode is known."""

from __future__ import annotations

import numpy as np
import pytest
from tuning.world import World, fixed_speed, tuned_speed

from specbranch.session import Settings
from specbranch.tuning import Arm, Observation, Tuner
from specbranch.tuning.acceptance import Acceptance, Rate
from specbranch.tuning.costs import Costs

SETTINGS = Settings(gamma=6, k_max=4)
TOKENS = 12000
WORLDS = {
    "two devices, a good draft": (World(alpha=0.8, speed_ratio=15), "specbranch"),
    "two devices, a bad draft": (World(alpha=0.45, speed_ratio=15, hit=0.3), "specbranch"),
    "one device, rows cost much": (
        World(alpha=0.6, speed_ratio=6, slope=0.3, parallel=False), "sps",
    ),
    "a draft that knows nothing": (World(alpha=0.1, speed_ratio=3, slope=0.2, hit=0.1), "ar"),
}  # fmt: skip


@pytest.mark.parametrize("name", WORLDS)
def test_it_finds_the_best_arm(name: str) -> None:
    """Learning included, at most 3 % behind the best arm, the mean of three runs."""
    world, policy = WORLDS[name]
    arms = Tuner(SETTINGS, parallel=world.parallel).arms
    speeds = {arm: fixed_speed(world, arm, 4000) for arm in arms}
    best = max(speeds, key=speeds.__getitem__)
    assert best.policy == policy, "the world is not what its name says"
    world.jitter = 0.1
    known = {arm: fixed_speed(world, arm, 8000) for arm in (best, Arm("ar"))}
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


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("policy", ["ar", "sps", "specbranch overlap", "specbranch serial"])
def test_predictions_come_true(policy: str, parallel: bool) -> None:
    """What is predicted for an arm is what it brings where acceptance is i.i.d."""
    world = World(alpha=0.7, speed_ratio=8, slope=0.05, parallel=parallel)
    _, tuner = tuned_speed(world, SETTINGS, 6000)
    name, _, stage = policy.partition(" ")
    arm = Arm(name, 4 * (name != "ar"), 2 * bool(stage), stage or "overlap")
    _teach(tuner, world, arm)
    assert tuner.value(arm) == pytest.approx(fixed_speed(world, arm, 60000), rel=0.05)


def _teach(tuner: Tuner, world: World, arm: Arm) -> None:
    world.chain = -1
    for _ in range(1500):
        tuner.observe(arm, world.round(arm))


def test_a_slower_machine_changes_no_comparison() -> None:
    """All estimates follow when one kind of work, the only one that is seen, slows down."""
    costs = Costs()
    for _ in range(200):
        costs.observe("forward", 1, 10.0)
        costs.observe("chain", 1, 1.0)
    for _ in range(300):
        costs.observe("forward", 1, 20.0)
    assert costs("forward", 1) == pytest.approx(20.0, rel=0.05)
    assert costs("chain", 1) == pytest.approx(2.0, rel=0.3)


def test_noise_drives_no_estimate_away() -> None:
    """Work that is not seen keeps its estimate while noisy other work goes on."""
    costs, rng = Costs(), np.random.default_rng(3)
    for _ in range(100):
        costs.observe("chain", 1, 1.0)
    for _ in range(5000):
        costs.observe("forward", 1, 10.0 * float(np.exp(0.3 * rng.standard_normal())))
    assert costs("chain", 1) == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize(
    ("known", "rows", "expected"),
    [
        ({1: 10.0, 5: 18.0}, 3, 14.0),
        ({1: 10.0, 5: 18.0}, 5, 18.0),
        ({2: 10.0}, 1, 9.7),
        ({2: 10.0}, 4, 10.6),
        ({}, 4, 0.0),
    ],
)
def test_costs_between_what_is_known(known: dict, rows: int, expected: float) -> None:
    costs = Costs()
    for at, seconds in known.items():
        costs.observe("forward", at, seconds)
    assert costs("forward", rows) == pytest.approx(expected)


def test_branches_that_are_cut_at_once_are_learnt() -> None:
    """After each hit nothing is kept: a chain is always empty, and a round one token."""
    tuner, arm = Tuner(SETTINGS, parallel=True), Arm("specbranch", 4, 4)
    for _ in range(400):
        tuner.observe(
            arm,
            Observation(
                seconds=10.0, num_drafted=0, num_accepted=0, forward=10.0, branch_step=1.0,
                num_branch_steps=1, read=1.0, hit=True, num_kept=0,
            ),
        )  # fmt: skip
    tokens, seconds = tuner.predict(arm)
    assert tokens == pytest.approx(1.0, abs=0.05)
    assert seconds == pytest.approx(10.0, rel=0.02)
    assert tuner._grown.value == pytest.approx(0.25, abs=0.02)


def test_acceptance_counts_judged_tokens_only() -> None:
    """A chain of 5 that breaks at its third token says nothing of the last two."""
    acceptance = Acceptance(5, Rate())
    for _ in range(4000):
        acceptance.add(5, 2)
    survival = acceptance.survival(5)
    assert survival[:3] == pytest.approx([1.0, 1.0, 1.0], abs=0.01)
    assert survival[3] < 0.02
    assert survival[4] / survival[3] == pytest.approx(2 / 3, abs=0.05)  # unseen: the mean


def test_an_untried_number_of_branches_gets_the_benefit_of_the_doubt() -> None:
    acceptance = Acceptance(4, Rate())
    for _ in range(50):
        acceptance.add_hit(1, hit=False)
        acceptance.add_hit(1, hit=True)
    assert acceptance.hit_rate(1) == pytest.approx(0.5, abs=0.03)
    assert acceptance.hit_rate(4) > 0.7
    for _ in range(100):
        acceptance.add_hit(4, hit=False)
    assert acceptance.hit_rate(4) < 0.1
