"""How long runs of right guesses are, and what they say of ``sps`` with any gamma."""

from __future__ import annotations

import numpy as np
import pytest

from specbranch.tuning.acceptance import FIRST_WEIGHT, Acceptance, Guesses

GAMMAS = (0, 1, 2, 3, 4, 6, 8)


def text_of(seed: int, tokens: int = 6000) -> list[bool]:
    """Whether guesses are right, by position; some runs are of hard places, some of easy ones."""
    rng, out = np.random.default_rng(seed), []
    while len(out) < tokens:
        out += [True] * (int(rng.geometric(rng.choice([0.1, 0.7]))) - 1) + [False]
    return out[:tokens]


def sps_rounds(text: list[bool], gamma: int) -> list[Guesses]:
    """Decoding round by round: tokens accepted, and whether the next guess was right."""
    rounds, at = [], 0
    while at + gamma < len(text):
        accepted = 0
        while accepted < gamma and text[at + accepted]:
            accepted += 1
        rounds.append(Guesses(accepted, None if accepted == gamma else False))
        at += accepted + 1
    return rounds


@pytest.mark.parametrize("gamma", [1, 2, 5])
def test_rounds_of_a_run_are_those_that_decoding_takes(gamma: int) -> None:
    for length in range(20):
        text = [True] * length + [False] + [True] * gamma
        rounds, at = 0, 0
        for accepted, *_ in sps_rounds(text, gamma):
            rounds, at = rounds + 1, at + accepted + 1
            if at > length:
                break
        assert rounds == length // (gamma + 1) + 1
        assert at == length + 1, "the next run begins with a round, whatever gamma is"


@pytest.mark.parametrize("seed", range(3))
def test_what_each_gamma_would_have_brought_is_known_exactly(seed: int) -> None:
    """All guesses are seen; texts are short beside what is remembered, runs not alike."""
    text = text_of(seed, 1200)
    acceptance = Acceptance(np.random.default_rng(seed))
    for right in text:
        acceptance.observe([Guesses(0, right)])
    for gamma, found in zip(GAMMAS, acceptance.tokens_a_round(GAMMAS), strict=True):
        rounds = sps_rounds(text, gamma)
        brought = sum(each.num_right + 1 for each in rounds) / len(rounds)
        assert found == pytest.approx(brought, rel=0.08), gamma
    assert acceptance.tokens_a_round([0]) == [pytest.approx(1.0)]


@pytest.mark.parametrize(("gamma", "off"), [(1, 0.12), (2, 0.08), (4, 0.08), (8, 0.08)])
def test_one_gamma_tells_of_the_others_where_the_guess_behind_its_chain_is_not_seen(
    gamma: int, off: float
) -> None:
    """The mean of some texts; with gamma 1 half of the lengths of a run are never asked for."""
    found, wanted = [], []
    for seed in range(8):
        text = text_of(seed, 6000)
        acceptance, rounds = Acceptance(np.random.default_rng(seed)), sps_rounds(text, gamma)
        for at in range(0, len(rounds), 50):
            acceptance.observe(rounds[at : at + 50])
        found.append(acceptance.tokens_a_round(GAMMAS))
        late = [sps_rounds(text[2000:], other) for other in GAMMAS]
        wanted.append([sum(each.num_right + 1 for each in some) / len(some) for some in late])
    assert np.mean(found, 0) == pytest.approx(np.mean(wanted, 0), rel=off)


def test_a_guess_that_was_not_asked_for_is_known_from_what_follows() -> None:
    """Runs are of none or of many: behind a right guess comes a chain that holds."""
    acceptance = Acceptance(np.random.default_rng(0))
    rounds = [*[Guesses(4, True)] * 3, Guesses(4, False), *[Guesses(0, False)] * 4] * 60
    acceptance.observe(rounds)
    acceptance.end()
    runs = []
    for following in (Guesses(4, True), Guesses(0, False)):
        for _ in range(40):
            acceptance.run = 0
            acceptance.observe([Guesses(4, None), following])
            runs.append(acceptance.run)
    assert np.mean([run > 5 for run in runs[:40]]) > 0.9, "it goes on"
    assert set(runs[40:]) == {0}


def test_told_one_by_one_or_together_it_is_the_same() -> None:
    """Also of guesses that were not asked for, which the next round tells of."""
    rounds = sps_rounds(text_of(3, 300), 3)
    found = []
    for size in (1, 7, len(rounds)):
        some = []
        for seed in range(30):
            acceptance = Acceptance(np.random.default_rng(seed))
            for at in range(0, len(rounds), size):
                acceptance.observe(rounds[at : at + size])
            some.append(acceptance.tokens_a_round(GAMMAS))
        found.append(np.mean(some, 0))
    assert found[0] == pytest.approx(found[1], rel=0.03)
    assert found[0] == pytest.approx(found[2], rel=0.07)


def test_the_end_of_a_text_is_the_end_of_a_run() -> None:
    acceptance = Acceptance(np.random.default_rng(0))
    acceptance.observe([Guesses(3, True)])
    assert acceptance.run == 4
    acceptance.observe([Guesses(2, None, is_end=True)])
    assert acceptance.run == 0


@pytest.mark.parametrize("right", [False, True])
def test_guesses_that_always_or_never_hold(right: bool) -> None:
    acceptance = Acceptance(np.random.default_rng(0))
    acceptance.observe([Guesses(4 * right, right)] * 5000)
    acceptance.observe([Guesses(4 * right, right)] * 5000)
    found = acceptance.tokens_a_round([4, 48])
    assert found == pytest.approx([5.0, 49.0] if right else [1.0, 1.0], rel=0.04)


def test_it_forgets() -> None:
    acceptance = Acceptance(np.random.default_rng(0))
    acceptance.observe([Guesses(0, False)] * 3000)
    judged = acceptance.judged
    acceptance.fade(1600)
    assert acceptance.judged == pytest.approx(judged / 2)
    acceptance.fade(10**9)
    assert acceptance.judged == pytest.approx(FIRST_WEIGHT), "never less than a first guess"
    assert acceptance.rate == pytest.approx(0.0, abs=0.01), "less sure, and no other"
