"""What is known of a quantity of every arm: a Gaussian process over the arms.

Arms of one kind are alike, the more the nearer their lengths, so that what one of them brought says
something of the others (Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006,
chapter 2); of an arm that has run for long it is what it brought alone. ``ar`` counts as a chain of
length 0. All quantities are logarithms, so that differences are ratios.

Lengths are measured so that the time of a round is nearly a straight line: a target forward and
gamma draft forwards take ``T + gamma D``, whose logarithm, but for ``T`` itself, is
``ln(1 + gamma D / T)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arms import Arm

EVEN = 6.0  # T / D; any middling one will do, the slopes that are learnt do the rest
REACH = 0.5  # difference of lengths at which arms are hardly alike

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


class Prior(NamedTuple):
    """Standard deviations: of a kind, of slopes, of what is smooth along gamma, of an arm alone.

    ``slope`` is by length, the same for all kinds, ``bend`` a kind's own, ``width`` by ln k;
    ``drafts`` is of all that draft together.
    """

    family: float
    smooth: float
    own: float
    slope: float = 0.0
    bend: float = 0.0
    width: float = 0.0
    drafts: float = 0.0


class Belief(NamedTuple):
    """Mean by arm and covariance ``[arms, arms]``."""

    mean: Floats
    covariance: Floats


def prior_covariance(arms: Sequence[Arm], prior: Prior) -> Floats:
    """How arms vary together before anything was seen, ``[arms, arms]``."""
    return np.array([[_covariance(one, other, prior) for other in arms] for one in arms])


def _covariance(one: Arm, other: Arm, prior: Prior) -> float:
    lengths, widths = (_length(one), _length(other)), (_log(one.k_max), _log(other.k_max))
    alike = prior.slope**2 * lengths[0] * lengths[1]
    alike += prior.drafts**2 * (one.gamma > 0) * (other.gamma > 0)
    if bool(one.k_max) != bool(other.k_max) or one.draft_stage != other.draft_stage:
        return alike
    apart = (lengths[0] - lengths[1]) ** 2 / REACH**2 + (widths[0] - widths[1]) ** 2
    alike += prior.family**2 + prior.smooth**2 * math.exp(-apart / 2.0)
    alike += prior.bend**2 * lengths[0] * lengths[1] + prior.width**2 * widths[0] * widths[1]
    return alike + prior.own**2 * (one == other)


def _length(arm: Arm) -> float:
    return math.log1p(arm.gamma / EVEN)


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
