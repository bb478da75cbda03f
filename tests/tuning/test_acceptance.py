"""How long runs of right guesses are, and what they say of ``sps`` with any gamma."""

from __future__ import annotations

import numpy as np
import pytest

from specbranch.tuning.acceptance import Acceptance, rounds_of_run

GAMMAS = (0, 1, 2, 3, 4, 6, 8)


def text_of(seed: int, tokens: int = 6000) -> list[bool]:
    """Whether guesses are right, by position; some runs are of hard places, some of easy ones."""
    rng, out = np.random.default_rng(seed), []
    while len(out) < tokens:
        out += [True] * (int(rng.geometric(rng.choice([0.1, 0.7]))) - 1) + [False]
    return out[:tokens]


def sps_rounds(text: list[bool], gamma: int) -> list[tuple[int, bool | None]]:
    """Decoding round by round: tokens accepted, and whether the next guess was right."""
    rounds, at = [], 0
    while at + gamma < len(text):
        accepted = 0
        while accepted < gamma and text[at + accepted]:
            accepted += 1
        rounds.append((accepted, None if accepted == gamma else False))
        at += accepted + 1
    return rounds


@pytest.mark.parametrize("gamma", [1, 2, 5])
def test_rounds_of_a_run_are_those_that_decoding_takes(gamma: int) -> None:
    for length in range(20):
        text = [True] * length + [False] + [True] * gamma
        rounds, at = 0, 0
        for accepted, _ in sps_rounds(text, gamma):
            rounds, at = rounds + 1, at + accepted + 1
            if at > length:
                break
        assert rounds == rounds_of_run(length, gamma)
        assert at == length + 1, "the next run begins with a round, whatever gamma is"


@pytest.mark.parametrize("seed", range(3))
def test_what_each_gamma_would_have_brought_is_known_exactly(seed: int) -> None:
    """All guesses are seen; texts are short beside what is remembered, runs not alike."""
    text = text_of(seed, 1200)
    acceptance = Acceptance(np.random.default_rng(seed))
    for right in text:
        acceptance.observe([(0, right)])
    for gamma, found in zip(GAMMAS, acceptance.tokens_a_round(GAMMAS), strict=True):
        rounds = sps_rounds(text, gamma)
        brought = sum(accepted + 1 for accepted, _ in rounds) / len(rounds)
        assert found == pytest.approx(brought, rel=0.08), gamma
    assert acceptance.tokens_a_round([0]) == [pytest.approx(1.0)]


@pytest.mark.parametrize("gamma", [2, 4, 8])
def test_one_gamma_tells_of_the_others_where_the_guess_behind_its_chain_is_not_seen(
    gamma: int,
) -> None:
    """The mean of some texts, as these guesses are drawn."""
    found, wanted = [], []
    for seed in range(6):
        text = text_of(seed, 4000)
        acceptance = Acceptance(np.random.default_rng(seed))
        acceptance.observe(sps_rounds(text, gamma))
        found.append(acceptance.tokens_a_round(GAMMAS))
        every = [sps_rounds(text, other) for other in GAMMAS]
        wanted.append([sum(a + 1 for a, _ in rounds) / len(rounds) for rounds in every])
    assert np.mean(found, 0) == pytest.approx(np.mean(wanted, 0), rel=0.12)


def test_told_one_by_one_or_together_it_is_the_same() -> None:
    """But for what fades on the way."""
    rounds = sps_rounds(text_of(3, 300), 3)
    known = [(accepted, bool(right)) for accepted, right in rounds]
    together, one_by_one = (Acceptance(np.random.default_rng(0)) for _ in range(2))
    together.observe(known)
    for each in known:
        one_by_one.observe([each])
    assert together.tokens_a_round(GAMMAS) == pytest.approx(
        one_by_one.tokens_a_round(GAMMAS), rel=0.05
    )


@pytest.mark.parametrize("right", [False, True])
def test_guesses_that_always_or_never_hold(right: bool) -> None:
    acceptance = Acceptance(np.random.default_rng(0))
    acceptance.observe([(4 * right, right)] * 5000)
    assert acceptance.tokens_a_round([4])[0] == pytest.approx(5.0 if right else 1.0, rel=0.02)


def test_it_forgets() -> None:
    acceptance = Acceptance(np.random.default_rng(0))
    acceptance.observe([(0, False)] * 3000)
    judged = acceptance.judged
    acceptance.fade(1600)
    assert acceptance.judged == pytest.approx(judged / 2)
    assert acceptance.rate == pytest.approx(0.0, abs=0.01), "less sure, and no other"
