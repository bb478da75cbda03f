"""The random source and the arithmetic under every decision, value by value."""

from __future__ import annotations

import numpy as np
import pytest
from ops.row_cases import make_rng

from specbranch import _C
from specbranch.testing import oracles_sampling as oracle

# Published known-answer vectors of Random123 for philox4x32, 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >= 1 << (bits - 1) else value


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: list[int], key: list[int], answer: str) -> None:
    wanted = [int(word, 16) for word in answer.split()]
    assert oracle.philox(counter, key).tolist() == wanted
    words = np.zeros(4, np.uint32)
    seed, position = signed(key[0] | key[1] << 32, 64), signed(counter[0] | counter[1] << 32, 64)
    _C.probe.philox_block(seed, position, counter[2], signed(counter[3], 32), words)
    assert words.tolist() == wanted


def test_uniform_is_the_oracles() -> None:
    rng, _ = make_rng()
    for _ in range(200):
        seed, position = (int(v) for v in rng.integers(-(2**63), 2**63 - 1, 2))
        lane, purpose = int(rng.integers(2**32)), int(rng.integers(4))
        native = _C.probe.uniform(seed, position, lane, purpose)
        assert 0 <= native < 1
        assert native == float(oracle.uniform(seed, position, signed(lane, 32), purpose))
        assert native == oracle.uniform_at(seed, position, lane, purpose)


def test_gumbel_noise_is_the_oracles() -> None:
    rng, _ = make_rng()
    for vocab_size in (1, 33, 1023, 4097, 200_000):
        seed, position = int(rng.integers(2**62)), int(rng.integers(2**40))
        native = np.empty(vocab_size, np.float32)
        _C.probe.gumbel_row(seed, position, native)
        wanted = oracle.gumbel_noise(seed, position, vocab_size)
        # Below 0 (u near 1) float32 resolves less, and no decision hangs on it.
        assert np.abs(native - wanted)[wanted > 0].max(initial=0) < 1e-6
        assert np.abs(native - wanted)[wanted > -2].max(initial=0) < 2e-5
        assert np.abs(native - wanted).max() < 0.1


def test_gumbel_noise_is_gumbel() -> None:
    from scipy.stats import kstest

    rng, _ = make_rng()
    native = np.empty(1_000_000, np.float32)
    _C.probe.gumbel_row(int(rng.integers(2**62)), 7, native)
    assert kstest(native, "gumbel_r").pvalue > 1e-6
    assert kstest(native + 0.02, "gumbel_r").pvalue < 1e-6  # the power of this test


# function, reference, inputs, largest error in units in the last place
FUNCTIONS = [
    ("exp_nonpositive", np.exp, lambda t: -86.9 * t, 2.0),
    ("log_positive", np.log, lambda t: np.exp(170 * t - 85), 2.0),
    ("log_positive", np.log, lambda t: 0.5 + t, 2.0),
    ("log1p_negative", lambda u: np.log1p(-u), lambda t: t * 0.99999 + 1e-9, 4.0),
    ("log1p_negative", lambda u: np.log1p(-u), lambda t: 2.0 ** (-33 * t - 1e-3), 4.0),
]


@pytest.mark.parametrize(("name", "reference", "inputs", "bound"), FUNCTIONS)
def test_fast_math_error(name, reference, inputs, bound) -> None:  # type: ignore[no-untyped-def]
    rng, _ = make_rng()
    x = inputs(rng.random(500_000)).astype(np.float32)
    native = np.empty_like(x)
    getattr(_C.probe, name)(x, native)
    wanted = reference(x.astype(np.float64))
    error = np.abs(native - wanted) / np.spacing(np.abs(wanted.astype(np.float32)))
    assert error.max() <= bound, f"{error.max()} ulp at {x[error.argmax()]}"


def test_exp_far_below_is_zero() -> None:
    x = np.array([-np.inf, -1e30, -87.5, 0.0, -0.0], np.float32)
    native = np.empty_like(x)
    _C.probe.exp_nonpositive(x, native)
    assert native.tolist() == [0, 0, 0, 1, 1]
