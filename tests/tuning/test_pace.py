"""Ratios of seconds, learnt on machines whose own speed changes all the time."""

from __future__ import annotations

import numpy as np
import pytest

from specbranch.session import Settings
from specbranch.tuning import Arm, arms_of
from specbranch.tuning.belief import prior_covariance
from specbranch.tuning.pace import MOST, PRIOR, Pace, Turn, turn_of

ARMS = arms_of(Settings(gamma=4, k_max=2))
NUM_SWEEPS = 12


def true_seconds(arm: Arm) -> float:
    return 1.0 + 0.15 * arm.gamma + 0.3 * bool(arm.k_max)


def sweeps(rng: np.random.Generator, slower: float, every: int) -> list[list[Turn]]:
    """Turns of all arms in any order; the machine's speed changes ``every`` turns or so."""
    found, speed = [], 1.0
    for _ in range(NUM_SWEEPS):
        block = []
        for idx in rng.permutation(len(ARMS)):
            if rng.random() < 1 / every:
                speed = slower if speed == 1.0 else 1.0
            noise = float(np.exp(0.05 * rng.standard_normal()))
            block.append(Turn(ARMS[idx], true_seconds(ARMS[idx]) * speed * noise))
        found.append(block)
    return found


def off(learnt: np.ndarray) -> float:
    """The largest error of a ratio to ``ar``'s seconds."""
    wanted = np.log([true_seconds(arm) for arm in ARMS])
    wrong = learnt - wanted
    return float(np.abs(wrong - wrong[0]).max())


@pytest.mark.parametrize(("slower", "every"), [(1.0, 5), (3.0, 12), (10.0, 12), (3.0, 6)])
def test_ratios_come_out_whatever_the_machine_does(slower: float, every: int) -> None:
    errors, plain = [], []
    for seed in range(5):
        blocks = sweeps(np.random.default_rng(seed), slower, every)
        pace = Pace(ARMS)
        for now, block in enumerate(blocks):
            pace.add(block, 12.0 * len(ARMS) * now)
        errors.append(off(pace.belief().mean))
        by_arm = {arm: [turn.seconds for block in blocks for turn in block if turn.arm == arm]
                  for arm in ARMS}  # fmt: skip
        plain.append(off(np.log([np.mean(by_arm[arm]) for arm in ARMS])))
    assert max(errors) < 0.12, errors
    if slower > 1.0:
        assert np.mean(plain) > 0.15, "means would do, so this shows nothing"


def test_what_is_believed_is_as_far_off_as_it_may_be() -> None:
    """Each turn is in two ratios, some of which are far off: they tell less than their number."""
    root = np.linalg.cholesky(prior_covariance(ARMS, PRIOR) + 1e-9 * np.eye(len(ARMS)))
    scores = []
    for seed in range(60):
        pace, rng = Pace(ARMS), np.random.default_rng(seed)
        true = root @ rng.standard_normal(len(ARMS))
        block = []
        for idx in np.concatenate([rng.permutation(len(ARMS)) for _ in range(3)]):
            noise = 0.11 * rng.standard_t(3)
            block.append(Turn(ARMS[idx], float(np.exp(true[idx] + noise))))
        pace.add(block, 0.0)
        mean, covariance = pace.belief()
        spread = covariance.diagonal() + covariance[0, 0] - 2.0 * covariance[0]
        wrong = mean - mean[0] - true + true[0]
        scores += list(wrong[1:] / np.sqrt(spread[1:]))
    assert 0.8 < np.sqrt(np.mean(np.square(scores))) < 1.25


def test_a_turn_without_another_tells_nothing() -> None:
    pace, before = Pace(ARMS), Pace(ARMS).belief()
    pace.add([Turn(ARMS[0], 1.0)], 10.0)
    pace.add([Turn(ARMS[1], 9.0), Turn(ARMS[1], 2.0)], 20.0)
    assert (pace.belief().mean == before.mean).all()
    assert (pace.belief().covariance == before.covariance).all()


def test_what_was_long_ago_gives_way() -> None:
    pace, first, second = Pace(ARMS), ARMS[0], ARMS[1]
    for seconds, start in ((1.5, 0.0), (0.8, 1e5)):
        for idx in range(30):
            pace.add([Turn(first, 1.0), Turn(second, seconds)], start + idx)
    mean = pace.belief().mean
    assert mean[1] - mean[0] == pytest.approx(np.log(0.8), abs=0.03)


def test_only_the_last_ratios_are_kept() -> None:
    """However few rounds ago the others were."""
    pace, fresh = Pace(ARMS), Pace(ARMS)
    for number, seconds in ((MOST // 2, 1.5), (MOST, 0.8)):
        for _ in range(number):
            pace.add([Turn(ARMS[0], 1.0), Turn(ARMS[1], seconds)], 0.0)
    for _ in range(MOST):
        fresh.add([Turn(ARMS[0], 1.0), Turn(ARMS[1], 0.8)], 0.0)
    assert pace.belief().mean == pytest.approx(fresh.belief().mean, abs=1e-9)
    assert pace.belief().covariance == pytest.approx(fresh.belief().covariance, abs=1e-9)


def test_more_is_known_of_arms_that_ran() -> None:
    pace = Pace(ARMS)
    for idx in range(10):
        pace.add([Turn(ARMS[0], 1.0), Turn(ARMS[1], 1.2)], float(idx))
    covariance = pace.belief().covariance
    spread = covariance.diagonal() + covariance[0, 0] - 2.0 * covariance[0]
    assert spread[1] ** 0.5 < 0.07
    assert spread[-1] ** 0.5 > 0.5


def test_a_hiccup_counts_for_little() -> None:
    assert turn_of(ARMS[0], [1.0, 1.0, 1.0, 500.0]).seconds == pytest.approx(1.5)
    assert turn_of(ARMS[0], [1.0, 2.0]).seconds == pytest.approx(1.5)


@pytest.mark.parametrize("plain", [0.5, 1.6])
def test_plain_rounds_may_be_far_from_the_line_of_those_that_draft(plain: float) -> None:
    """Three sweeps show that ``ar`` is twice as fast, or half as fast, as lengths let expect."""
    errors = []
    for seed in range(8):
        pace, rng = Pace(ARMS), np.random.default_rng(seed)
        for now in range(3):
            block = []
            for idx in rng.permutation(len(ARMS)):
                arm, noise = ARMS[idx], float(np.exp(0.05 * rng.standard_normal()))
                seconds = true_seconds(arm) if arm.gamma else plain
                block.append(Turn(arm, seconds * noise))
            pace.add(block, 12.0 * len(ARMS) * now)
        learnt = pace.belief().mean
        short = ARMS.index(Arm("sps", 1))
        errors.append(learnt[0] - learnt[short] - np.log(plain / true_seconds(ARMS[short])))
    assert abs(np.mean(errors)) < 0.15, errors
