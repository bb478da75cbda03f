"""What is known of a quantity of every arm: a Gaussian process over the arms.

Arms of one family are alike, the more the nearer their lengths, so that what one of them brought
says something of the others (Rasmussen and Williams, "Gaussian Processes for Machine Learning",
2006, chapter 2); of an arm that has run for long it is what it brought alone. All quantities are
logarithms, so that differences are ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arms import Arm

REACH = 1.0  # difference of ln gamma, or ln k, at which arms are hardly alike

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


class Prior(NamedTuple):
    """Standard deviations: of a family, of slopes, of what is smooth along gamma, of an arm alone.

    ``slope`` is by ln gamma, the same for all families, ``bend`` a family's own, ``width`` by ln k.
    """

    family: float
    smooth: float
    own: float
    slope: float = 0.0
    bend: float = 0.0
    width: float = 0.0


class Belief(NamedTuple):
    """Mean by arm and covariance ``[arms, arms]``."""

    mean: Floats
    covariance: Floats


def prior_covariance(arms: Sequence[Arm], prior: Prior) -> Floats:
    """How arms vary together before anything was seen, ``[arms, arms]``."""
    return np.array([[_covariance(one, other, prior) for other in arms] for one in arms])


def _covariance(one: Arm, other: Arm, prior: Prior) -> float:
    gammas, widths = (_log(one.gamma), _log(other.gamma)), (_log(one.k_max), _log(other.k_max))
    alike = prior.slope**2 * gammas[0] * gammas[1]
    if one.family != other.family:
        return alike
    apart = (gammas[0] - gammas[1]) ** 2 + (widths[0] - widths[1]) ** 2
    alike += prior.family**2 + prior.smooth**2 * math.exp(-apart / (2.0 * REACH**2))
    alike += prior.bend**2 * gammas[0] * gammas[1] + prior.width**2 * widths[0] * widths[1]
    return alike + prior.own**2 * (one == other)


def _log(number: int) -> float:
    return math.log(max(1, number))


def belief(prior: Floats, precision: Floats, evidence: Floats) -> Belief:
    """Posterior of a Gaussian with mean 0.

    Args:
        prior: covariance ``[arms, arms]``.
        precision: of what was seen, ``[arms, arms]``; may be singular.
        evidence: precision times what was seen, ``[arms]``.
    """
    both = np.column_stack((prior @ evidence, prior))
    solved = np.linalg.solve(np.eye(len(prior)) + prior @ precision, both)
    covariance = (solved[:, 1:] + solved[:, 1:].T) / 2.0
    return Belief(solved[:, 0].astype(np.float64), covariance.astype(np.float64))
