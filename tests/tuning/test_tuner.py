"""The tuner against machines of which the best way to decode is known."""

from __future__ import annotations

import numpy as np
import pytest
from tuning.world import World, fixed_speed, tuned_speed

from specbranch.session import Settings
from specbranch.tuning import Arm, arms_of

SETTINGS = Settings(gamma=6, k_max=4)
TOKENS = 20000
KNOWN = 100_000  # tokens, from which a speed is known to half a percent
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
