"""The Gaussian process over the arms, against the textbook's formulas."""

from __future__ import annotations

import numpy as np
import pytest

from specbranch.session import Settings
from specbranch.tuning import Arm, arms_of
from specbranch.tuning.belief import Prior, belief, prior_covariance

ARMS = arms_of(Settings(gamma=8, k_max=4))
PRIOR = Prior(family=0.7, smooth=0.1, own=0.02, slope=0.5, bend=0.15, width=0.15)


def test_it_is_gaussian_regression() -> None:
    """Rasmussen and Williams, eq. 2.23 and 2.24, where each arm was seen once or never."""
    rng = np.random.default_rng(1)
    prior = prior_covariance(ARMS, PRIOR)
    seen = np.sort(rng.choice(len(ARMS), 7, replace=False))
    noise, values = rng.uniform(0.01, 0.5, 7), rng.standard_normal(7)
    precision, evidence = np.zeros_like(prior), np.zeros(len(ARMS))
    precision[seen, seen] = 1.0 / noise
    evidence[seen] = values / noise
    found = belief(prior, precision, evidence)
    inverse = np.linalg.inv(prior[np.ix_(seen, seen)] + np.diag(noise))
    assert found.mean == pytest.approx(prior[:, seen] @ inverse @ values, abs=1e-9)
    left = prior - prior[:, seen] @ inverse @ prior[seen]
    assert found.covariance == pytest.approx(left, abs=1e-9)


def test_nothing_seen_is_the_prior() -> None:
    prior = prior_covariance(ARMS, PRIOR)
    found = belief(prior, np.zeros_like(prior), np.zeros(len(ARMS)))
    assert not found.mean.any()
    assert found.covariance == pytest.approx(prior)


def test_the_prior_is_one() -> None:
    """A covariance: symmetric, and no combination of arms has less than no variance."""
    prior = prior_covariance(ARMS, PRIOR)
    assert (prior == prior.T).all()
    assert np.linalg.eigvalsh(prior).min() > 0.0


def test_neighbours_are_more_alike_than_others() -> None:
    prior = prior_covariance(ARMS, PRIOR)

    def apart(one: Arm, other: Arm) -> float:
        i, j = ARMS.index(one), ARMS.index(other)
        return float(prior[i, i] + prior[j, j] - 2.0 * prior[i, j])

    sps = [Arm("sps", gamma) for gamma in (1, 2, 8)]
    assert apart(sps[0], sps[1]) < apart(sps[0], sps[2]) < apart(Arm("ar"), sps[2])
