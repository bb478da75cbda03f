"""branch_topk against a full sort in float64."""

from __future__ import annotations

import numpy as np
import pytest
from ops.row_cases import (
    DTYPES,
    KINDS,
    exact,
    f32,
    i32,
    i64,
    logits_of,
    make_rng,
    one_order,
    random_cutoffs,
    random_logits,
    run_on,
    same_bits,
    stored,
    strided,
)
from ops.row_cases import SIZES as EDGES

from specbranch import ops
from specbranch.testing import oracles_sampling as oracle

SIZES = [1, 2, 33, 1025, 4097, 32000]


def check(
    logits: np.ndarray, got: ops.BranchResult, b: int, k_max: int, request: oracle.Request,
    cutoff: float,
) -> None:  # fmt: skip
    """One row: the count by its formula, the candidates by score, best first."""
    candidates = [int(x) for x in got.candidates[b]]
    count = int(got.num_branches[b])
    greedy = request.temperature == 0
    p = oracle.distribution(logits, request.temperature or 1.0, None if greedy else cutoff)
    confidence = float(p.max())
    assert float(got.confidence[b]) == pytest.approx(confidence, rel=1e-5)
    kept = np.isfinite(logits) if greedy else np.isfinite(logits) & (logits >= cutoff)
    wanted = {
        min(max(1, int(np.floor(k_max * (1 - confidence) + nudge))), int(kept.sum()), k_max)
        for nudge in (-1e-5, 1e-5)
    }
    assert count in wanted, f"{count} not in {wanted}"
    assert candidates[count:] == [-1] * (k_max - count)
    chosen = candidates[:count]
    assert len(set(chosen)) == count and all(kept[token] for token in chosen)
    score, slack = np.where(kept, logits, -np.inf), 0.0
    if request.draw == "gumbel" and not greedy:
        noise = oracle.gumbel_noise(request.seed, request.position, len(logits))
        score = (score - score.max()) / request.temperature + noise
        slack = oracle.SCORE_TOLERANCE
    best = np.lexsort((np.arange(len(score)), -score))[:count]
    if slack == 0:
        assert chosen == best.tolist()
    else:
        np.testing.assert_allclose(score[chosen], score[best], atol=slack)


@one_order
@pytest.mark.parametrize("draw", ["inverse_cdf", "gumbel"])
@pytest.mark.parametrize("kind", KINDS)
def test_against_sort(backend: str, kind: str, draw: str) -> None:
    rng, _ = make_rng()
    for size in SIZES:
        for k_max in (0, 1, 6, 40):
            dtype = list(DTYPES)[int(rng.integers(3))]
            B = 4
            temperature = np.float32([0, 0.4, 1.0, 1.8])
            logits = strided(stored(logits_of(kind, rng, B, size), dtype))
            cutoff = ops.logit_cutoff(logits, f32(temperature), i32([0, 0, 3, 20]))
            seed, position = rng.integers(0, 2**62, B), rng.integers(0, 2**40, B)
            out = ops.BranchResult(i32(np.full((B, k_max), -7)), i32([-7] * B), f32([-7.0] * B))
            got = run_on(
                backend, ops.branch_topk, logits, k_max, f32(temperature), cutoff=cutoff,
                seed=i64(seed), position=i64(position), draw=draw, out=out,
            )  # fmt: skip
            assert got is out or backend == "cuda"
            for b in range(B):
                request = oracle.Request(
                    float(temperature[b]), int(seed[b]), int(position[b]), draw
                )
                check(exact(logits)[b], got, b, k_max, request, float(cutoff[b]))


@pytest.mark.parametrize("draw", ["inverse_cdf", "gumbel"])
def test_same_bits_as_cpu(backend: str, draw: str) -> None:
    if backend == "cpu":
        pytest.skip("the reference itself")
    rng, _ = make_rng()
    for size in EDGES:
        for k_max in (0, 1, 7, 64):
            B = int(rng.integers(1, 4))
            given = {
                "logits": random_logits(rng, B, size),
                "k_max": k_max,
                "temperature": f32(rng.choice([0.0, 0.4, 1.0, 3.0], B)),
                "cutoff": random_cutoffs(rng, B),
                "seed": i64(rng.integers(0, 2**62, B)),
                "position": i64(rng.integers(0, 2**40, B)),
                "draw": draw,
            }
            wanted = ops.branch_topk(**given)
            assert same_bits(run_on(backend, ops.branch_topk, **given), wanted), given


def test_checker_sees_wrong_candidates() -> None:
    logits = np.float32([[0.0, 3.0, 1.0, 2.0]])
    got = ops.branch_topk(logits, 4, 5.0)
    assert got.candidates.tolist() == [[1, 3, -1, -1]] or got.num_branches[0] > 1
    request = oracle.Request(5.0, 0, 0)
    check(logits[0], got, 0, 4, request, -np.inf)
    for wrong in (
        got._replace(candidates=got.candidates[:, ::-1]),
        got._replace(num_branches=got.num_branches - 1),
        got._replace(confidence=got.confidence + 0.01),
    ):
        with pytest.raises(AssertionError):
            check(logits[0], wrong, 0, 4, request, -np.inf)


def test_gumbel_candidates_hold_the_coupled_draw() -> None:
    rng, _ = make_rng()
    logits, seed = f32(rng.standard_normal((50, 3000))), i64(range(50))
    branches = ops.branch_topk(logits, 4, 1.0, seed=seed, position=7, draw="gumbel")
    token = ops.sample(logits, 1.0, seed, 7, draw="gumbel").token
    assert branches.candidates[:, 0].equal(token)


@pytest.mark.parametrize("bad", [np.nan, np.inf, "nothing finite"])
def test_bad_rows(backend: str, bad: float | str) -> None:
    logits = np.zeros((2, 1500), np.float32)
    if bad == "nothing finite":
        logits[0] = -np.inf
    else:
        logits[0, 1400] = bad
    got = run_on(backend, ops.branch_topk, logits, 3, 1.0)
    assert got.num_branches.tolist() == [0, 2] and np.isnan(got.confidence[0])
    assert got.candidates.tolist() == [[-1, -1, -1], [0, 1, -1]]


WRONG = [
    (dict(k_max=-1), ValueError, "k_max was -1"),
    (dict(k_max=2.0), ValueError, "k_max was 2.0"),
    (dict(temperature=-1.0), ValueError, "temperature had -1"),
    (dict(draw="gumbel"), TypeError, "seed was NoneType"),
    (dict(draw="gumbel", seed=1), TypeError, "position was NoneType"),
    (dict(out=(np.zeros((2, 4), np.int32),) * 3), ValueError, "out.candidates had shape"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_wrong_arguments(change: dict, error: type[Exception], message: str) -> None:
    good = dict(logits=np.zeros((2, 9), np.float32), k_max=3, temperature=1.0)
    ops.branch_topk(**good)
    with pytest.raises(error, match=message):
        ops.branch_topk(**{**good, **change})
