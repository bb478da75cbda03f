"""logit_cutoff against a full sort in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops.row_cases import (
    DTYPES,
    KINDS,
    exact,
    f32,
    i32,
    logits_of,
    make_rng,
    one_order,
    random_logits,
    run_on,
    same_bits,
    stored,
    strided,
)
from ops.row_cases import SIZES as EDGES

from specbranch import ops
from specbranch.testing import oracles_sampling as oracle

SIZES = [1, 2, 33, 1024, 1025, 4097, 32000]
# top_k, top_p, min_p
SETTINGS = [
    (0, 1.0, 0.0),
    (1, 1.0, 0.0),
    (50, 1.0, 0.0),
    (0, 0.9, 0.0),
    (0, 0.999, 0.0),
    (0, 1e-6, 0.0),
    (40, 0.8, 0.0),
    (0, 1.0, 0.1),
    (20, 0.95, 0.05),
    (10**9, 0.5, 1e-30),
    (3000, 0.99999, 0.0),
    (0, 1.0, 1.0),
]


def check(logits: np.ndarray, cutoff: float, temperature: float, setting: tuple) -> None:
    """The set kept is the oracle's, or differs by what rounding of ``top_p`` explains."""
    top_k, top_p, min_p = setting
    top_p, min_p = float(np.float32(top_p)), float(np.float32(min_p))
    nudges = [1.0] if top_p == 1 else [1 - 3e-6, 1.0, 1 + 3e-6]
    wanted = {
        oracle.logit_cutoff(logits, temperature, top_k, min(top_p * nudge, 1.0), min_p)
        for nudge in nudges
    }
    low, high = min(wanted), max(wanted)
    if np.isnan(low) or np.isinf(low):
        assert str(cutoff) == str(low)
        return
    slack = 2e-6 * max(1.0, abs(high), temperature * 80) if min_p > 0 else 0.0
    assert low - slack <= cutoff <= high + slack, f"{cutoff} not in [{low}, {high}]"


@one_order
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_against_sort(backend: str, kind: str, size: int) -> None:
    rng, _ = make_rng()
    dtype = list(DTYPES)[int(rng.integers(3))]
    temperatures = rng.choice([0.0, 0.3, 1.0, 2.5], len(SETTINGS)).astype(np.float32)
    logits = strided(stored(logits_of(kind, rng, len(SETTINGS), size), dtype))
    top_k, top_p, min_p = (np.array(column) for column in zip(*SETTINGS, strict=True))
    out = torch.full((len(SETTINGS),), 123.0)
    got = run_on(
        backend, ops.logit_cutoff, logits, f32(temperatures), i32(top_k), f32(top_p), f32(min_p),
        out=out,
    )  # fmt: skip
    assert got is out or backend == "cuda"
    for b, setting in enumerate(SETTINGS):
        check(exact(logits)[b], float(got[b]), float(temperatures[b]), setting)


def test_same_bits_as_cpu(backend: str) -> None:
    if backend == "cpu":
        pytest.skip("the reference itself")
    rng, _ = make_rng()
    for size in EDGES:
        for _ in range(3):
            B = int(rng.integers(1, 6))
            given = {
                "logits": random_logits(rng, B, size),
                "temperature": f32(rng.choice([0.0, 0.4, 1.0, 3.0], B)),
                "top_k": i32(rng.choice([0, 1, 2, 30, size, 10**6], B)),
                "top_p": f32(rng.choice([1.0, 0.5, 0.9, 0.999, 1e-5], B)),
                "min_p": f32(rng.choice([0.0, 0.05, 1.0], B)),
            }
            wanted = ops.logit_cutoff(**given)
            assert same_bits([run_on(backend, ops.logit_cutoff, **given)], [wanted]), given


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_cutoff_of_minus_zero_is_zero(backend: str, temperature: float) -> None:
    """Which of two equal maxima is found differs among backends; the bits do not."""
    logits = torch.tensor([[-0.0, -1.0], [-0.0, 0.0], [0.0, -0.0]])
    for min_p in (0.0, 1.0):
        cutoff = run_on(backend, ops.logit_cutoff, logits, temperature, 1, 0.5, min_p)
        assert same_bits([torch.as_tensor(cutoff).float()], [torch.zeros(3)])


def test_checker_sees_a_wrong_cutoff() -> None:
    logits = np.array([0.0, 1.0, 2.0, 3.0])
    check(logits, 2.0, 1.0, (2, 1.0, 0.0))
    for wrong in (1.0, 3.0, float("nan"), float("-inf")):
        with pytest.raises(AssertionError):
            check(logits, wrong, 1.0, (2, 1.0, 0.0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, "nothing finite"])
def test_bad_rows(backend: str, bad: float | str) -> None:
    logits = np.zeros((2, 1500), np.float32)
    if bad == "nothing finite":
        logits[0] = -np.inf
    else:
        logits[0, 1400] = bad
    cutoff = run_on(backend, ops.logit_cutoff, logits, 1.0, 10, 0.9, 0.1)
    assert backend == "cuda" or (isinstance(cutoff, np.ndarray) and cutoff.dtype == np.float32)
    assert np.isnan(cutoff[0]) and cutoff[1] == 0


def test_equals_of_the_last_are_kept() -> None:
    logits = np.array([[-0.0, 0.0, 0.0, -1.0, 5.0]], np.float32)
    assert ops.logit_cutoff(logits, 1.0, 2)[0] == 0


def test_no_rows() -> None:
    assert ops.logit_cutoff(np.zeros((0, 5), np.float32), 1.0, 3).shape == (0,)


WRONG = [
    (dict(logits=np.zeros((2, 0), np.float32)), ValueError, "logits had an empty vocabulary"),
    (dict(logits=np.zeros(3, np.float32)), ValueError, r"logits had shape \[3\], must be \[B, V\]"),
    (dict(logits=np.zeros((2, 3))), TypeError, "logits had dtype float64"),
    (dict(logits=[[1.0]]), TypeError, "logits was list"),
    (dict(temperature=-0.5), ValueError, "temperature had -0.5.*>= 0"),
    (dict(temperature=float("nan")), ValueError, "temperature had"),
    (dict(temperature=np.zeros(3, np.float32)), ValueError, "temperature had shape"),
    (dict(top_k=-1), ValueError, "top_k had -1"),
    (dict(top_k=1.5), ValueError, "top_k was 1.5"),
    (dict(top_p=0.0), ValueError, r"top_p had 0.*\(0, 1\]"),
    (dict(top_p=1.5), ValueError, "top_p had 1.5"),
    (dict(min_p=-0.5), ValueError, "min_p had -0.5"),
    (dict(out=np.zeros(2, np.int32)), TypeError, "out had dtype int32"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_wrong_arguments(change: dict, error: type[Exception], message: str) -> None:
    arguments = dict(logits=np.zeros((2, 3), np.float32), temperature=1.0)
    with pytest.raises(error, match=message):
        ops.logit_cutoff(**{**arguments, **change})
