"""sample against the float64 oracle and, over many seeds, against the exact distribution."""

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
from specbranch.testing.statistics import chi_square

SIZES = [1, 2, 33, 1024, 1025, 4097, 32000]
TEMPERATURES = [0.0, 0.2, 1.0, 1.7]


def check(
    logits: np.ndarray, got: ops.SampleResult, b: int, request: oracle.Request, **more
) -> int:
    """One row against the oracle; returns how many tokens it allowed."""
    cutoff, lane, purpose = more["cutoff"], more["lane"], more["purpose"]
    token = int(got.token[b])
    allowed = oracle.target_tokens(logits, request, 0, cutoff, lane=lane, purpose=purpose)
    assert token in allowed, f"{token} not in {allowed}"
    figures = [float(x[b]) for x in got[1:]]
    if token < 0:
        assert np.isnan(figures).all()
        return 1
    own = (1.0, None) if request.temperature == 0 else (request.temperature, cutoff)
    probabilities = oracle.distribution(logits, *own)
    wanted = [probabilities[token], probabilities.max(), oracle.entropy(probabilities)]
    np.testing.assert_allclose(figures, wanted, rtol=3e-5, atol=2e-6)
    return len(allowed)


@one_order
@pytest.mark.parametrize("draw", ["inverse_cdf", "gumbel"])
@pytest.mark.parametrize("kind", KINDS)
def test_against_oracle(backend: str, kind: str, draw: str) -> None:
    rng, _ = make_rng()
    allowed = []
    for size in SIZES:
        dtype = list(DTYPES)[int(rng.integers(3))]
        B = len(TEMPERATURES) * 2
        logits = strided(stored(logits_of(kind, rng, B, size), dtype))
        temperature = np.float32(TEMPERATURES * 2)
        cutoff = ops.logit_cutoff(logits, f32(temperature), 5)
        cutoff[B // 2 :] = -np.inf
        seed, position = rng.integers(-(2**63), 2**63 - 1, B), rng.integers(0, 2**40, B)
        lane = rng.integers(0, 9, B)
        out = ops.SampleResult(i32([-7] * B), *(f32([-7.0] * B) for _ in range(3)))
        got = run_on(
            backend, ops.sample, logits, f32(temperature), i64(seed), i64(position),
            cutoff=cutoff, lane=i32(lane), draw=draw, purpose=ops.PURPOSE_RECOVER, out=out,
        )  # fmt: skip
        assert got is out or backend == "cuda"
        for b in range(B):
            request = oracle.Request(float(temperature[b]), int(seed[b]), int(position[b]), draw)
            more = {"cutoff": float(cutoff[b]), "lane": int(lane[b]), "purpose": oracle.RECOVER}
            allowed.append(check(exact(logits)[b], got, b, request, **more))
    assert np.mean(np.array(allowed) == 1) > 0.75  # the oracle is rarely in doubt


def test_checker_sees_a_wrong_token() -> None:
    logits = np.float32([[0.0, 0.5, 1.0]])
    got = ops.sample(logits, 1.0, 5, 6, purpose=ops.PURPOSE_DRAFT)
    more = {"cutoff": None, "lane": 0, "purpose": oracle.DRAFT}
    check(logits[0], got, 0, oracle.Request(1.0, 5, 6), **more)
    for wrong in (
        got._replace(token=(got.token + 1) % 3),
        got._replace(entropy=got.entropy + 0.01),
    ):
        with pytest.raises(AssertionError):
            check(logits[0], wrong, 0, oracle.Request(1.0, 5, 6), **more)


@pytest.mark.parametrize("draw", ["inverse_cdf", "gumbel"])
def test_distribution(draw: str) -> None:
    rng, _ = make_rng()
    # The order is fresh, the values are not: the power below must not hang on luck.
    count, logits = 100_000, f32(rng.permutation([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, -np.inf]))
    start = int(rng.integers(2**60))
    seeds = torch.arange(start, start + count)
    got = ops.sample(logits.expand(count, 7), 0.8, seeds, 3, draw=draw)
    exact_p = oracle.distribution(logits.numpy(), float(np.float32(0.8)))
    counts = np.bincount(got.token.numpy(), minlength=7)
    assert chi_square(counts, exact_p).p_value > 1e-6
    # The power of this test: temperature 0.82 instead of 0.8 is seen.
    wrong = rng.multinomial(count * 4, oracle.distribution(logits.numpy(), 0.82))
    assert chi_square(wrong, exact_p).p_value < 1e-6


def test_positions_lanes_and_purposes_are_independent_draws() -> None:
    logits = torch.zeros(4096, 64)
    base = dict(temperature=1.0, seed=1)
    first = ops.sample(logits, **base, position=torch.arange(4096)).token
    others = [
        ops.sample(logits, **base, position=torch.arange(4096) + 1).token,
        ops.sample(logits, **base, position=torch.arange(4096), lane=i32([1] * 4096)).token,
        ops.sample(logits, **base, position=torch.arange(4096), purpose=ops.PURPOSE_RECOVER).token,
        ops.sample(logits, temperature=1.0, seed=2, position=torch.arange(4096)).token,
    ]
    for other in others:
        assert int((first == other).sum()) < 130  # expected 64, standard deviation 8
    gumbel = [
        ops.sample(logits[:50], 1.0, 1, 9, draw="gumbel", lane=i32(range(50)), purpose=p).token
        for p in range(4)
    ]
    assert len(torch.unique(torch.stack(gumbel))) == 1  # noise ignores lane and purpose


@pytest.mark.parametrize("draw", ["inverse_cdf", "gumbel"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf, "nothing finite", "nan cutoff"])
def test_bad_rows(backend: str, bad: float | str, temperature: float, draw: str) -> None:
    logits = np.zeros((2, 1500), np.float32)
    cutoff = np.float32([-np.inf, -np.inf])
    if bad == "nothing finite":
        logits[0] = -np.inf
    elif bad == "nan cutoff":
        cutoff[0] = np.nan
    else:
        logits[0, 1400] = bad
    got = run_on(backend, ops.sample, logits, temperature, 1, 2, cutoff=cutoff, draw=draw)
    assert isinstance(got.token, np.ndarray) or backend == "cuda"
    if bad != "nan cutoff" or temperature > 0:
        assert got.token[0] == -1 and np.isnan(got.entropy[0])
    assert got.token[1] >= 0 and np.isfinite(got.entropy[1])


def test_extreme_uniforms_never_give_an_impossible_token(backend: str) -> None:
    """Only every 97th token is possible; the smallest and largest of 300,000 uniforms are tried."""
    logits = torch.full((1, 5000), -np.inf)
    logits[0, 50::97] = torch.linspace(-40, 0, len(range(50, 5000, 97)))
    seeds = torch.arange(300_000)
    u = oracle.uniform(seeds.numpy(), 0, 0, oracle.DRAFT)
    extreme = seeds[np.argsort(u)[np.r_[:50, -50:0]]]
    token = run_on(backend, ops.sample, logits.expand(100, 5000), 1.0, extreme, 0).token
    assert ((token - 50) % 97 == 0).all()


def test_extreme_temperatures() -> None:
    logits = np.float32([[1.0, 1.0001, -3.0, 1.0001]])
    assert ops.sample(logits, 1e-38, 1, 2).token[0] in (1, 3)
    assert ops.sample(logits, 1e-38, 1, 2, draw="gumbel").token[0] in (1, 3)
    assert ops.sample(logits, 3e38, 1, 2).entropy[0] == pytest.approx(np.log(4), rel=1e-5)


def test_threads_change_nothing() -> None:
    rng, _ = make_rng()
    logits = f32(rng.standard_normal((3, 200_000)))
    results = []
    for threads in (1, 2, 5):
        with ops.limit_threads(threads):
            drawn = [ops.sample(logits, 1.0, 4, 5, draw=draw) for draw in ("inverse_cdf", "gumbel")]
        results.append(torch.stack([x.to(torch.float64) for result in drawn for x in result]))
    assert results[1].equal(results[0]) and results[2].equal(results[0])


@pytest.mark.parametrize("draw", ["inverse_cdf", "gumbel"])
def test_same_bits_as_cpu(backend: str, draw: str) -> None:
    if backend == "cpu":
        pytest.skip("the others are compared with it")
    rng, _ = make_rng()
    for V in EDGES * 4:
        B = 200 if V <= 100 else 8
        given = dict(
            logits=random_logits(rng, B, V),
            temperature=f32(rng.choice([0, 0.3, 1, 1, 1.7, 1e-38, 3e38], B)),
            seed=i64(rng.integers(-(2**63), 2**63 - 1, B)),
            position=i64(rng.integers(0, 2**40, B)),
            cutoff=random_cutoffs(rng, B),
            lane=None if rng.random() < 0.5 else i32(rng.integers(0, 9, B)),
        )
        wanted = ops.sample(**given, draw=draw)
        assert same_bits(run_on(backend, ops.sample, **given, draw=draw), wanted), given


WRONG = [
    (dict(logits=np.zeros((2, 3), np.int32)), TypeError, "logits had dtype int32"),
    (dict(logits=torch.zeros(4, 3).T[:2, ::2]), ValueError, "logits had strides"),
    (dict(temperature=-1.0), ValueError, "temperature had -1"),
    (dict(seed=1.5), ValueError, "seed was 1.5"),
    (dict(seed=2**63), ValueError, "seed was"),
    (dict(seed=np.zeros(2, np.int32)), TypeError, "seed had dtype int32"),
    (dict(position=np.zeros(3, np.int64)), ValueError, "position had shape"),
    (dict(cutoff=np.zeros((2, 1), np.float32)), ValueError, "cutoff had shape"),
    (dict(lane=np.zeros(2, np.int64)), TypeError, "lane had dtype int64"),
    (dict(draw="argmax"), ValueError, "draw was 'argmax'"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_wrong_arguments(change: dict, error: type[Exception], message: str) -> None:
    good = dict(logits=np.zeros((2, 3), np.float32), temperature=1.0, seed=1, position=2)
    ops.sample(**good)
    with pytest.raises(error, match=message):
        ops.sample(**{**good, **change})
