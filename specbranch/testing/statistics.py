"""Goodness of fit for tests of distributions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ChiSquare:
    """A chi-square test: statistic, degrees of freedom and p-value."""

    statistic: float
    dof: int
    p_value: float


def chi_square(
    counts: np.ndarray, probabilities: np.ndarray, *, min_expected: float = 5.0
) -> ChiSquare:
    """Pearson's test of ``counts`` against exact ``probabilities`` of the same shape.

    Cells that expect fewer than ``min_expected`` are pooled into one. A count in a cell of
    probability 0 gives p = 0: it is impossible, however rare.
    """
    from scipy.stats import chi2

    counts, probabilities = np.ravel(counts), np.ravel(probabilities)
    if abs(probabilities.sum() - 1.0) > 1e-9:
        raise ValueError(f"probabilities sum to {probabilities.sum()}; they must sum to 1")
    if counts[probabilities == 0.0].any():
        return ChiSquare(float("inf"), len(counts) - 1, 0.0)
    expected = probabilities * counts.sum()
    small = expected < min_expected
    observed = np.append(counts[~small], counts[small].sum())
    wanted = np.append(expected[~small], expected[small].sum())
    if wanted[-1] < min_expected:
        # Too little even together: it joins the smallest of the others.
        host = int(np.argmin(wanted[:-1]))
        observed[host] += observed[-1]
        wanted[host] += wanted[-1]
        observed, wanted = observed[:-1], wanted[:-1]
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    dof = len(wanted) - 1
    return ChiSquare(statistic, dof, float(chi2.sf(statistic, dof)) if dof else 1.0)
