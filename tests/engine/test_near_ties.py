"""The judge of near ties accepts what rounding does, and nothing else."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from engine.near_ties import (
    BFLOAT16_TOLERANCE,
    Coupled,
    assert_greedy,
    assert_same_up_to_ties,
    deficits,
    logits_of,
)

from specbranch import Engine, SamplingParams, demo_pair
from specbranch.lanes import SerialLanes

PROMPTS = Path(__file__).resolve().parents[2] / "bench" / "prompts.txt"
NEW = 32


@functools.cache
def target(dtype: str = "float32"):
    return demo_pair(dtype=dtype)[0]


@functools.cache
def prompts() -> list[list[int]]:
    tokenizer = demo_pair()[2]
    return [tokenizer.encode(line) for line in PROMPTS.read_text().splitlines()[:4]]


@functools.cache
def plain(idx: int, dtype: str = "float32", temperature: float = 0.0) -> tuple[int, ...]:
    engine = Engine(target(dtype), policy="ar", verify="coupled", lanes=SerialLanes(1))
    params = SamplingParams(max_new_tokens=NEW, temperature=temperature, seed=idx, ignore_eos=True)
    return tuple(engine.generate(prompts()[idx], params).tokens)


@pytest.mark.parametrize("idx", range(4))
def test_plain_decoding_passes(idx: int) -> None:
    assert float(deficits(target(), prompts()[idx], plain(idx)).max()) == 0.0
    sampled = plain(idx, temperature=1.0)
    assert_greedy(target(), prompts()[idx], sampled, 1e-4, Coupled(idx))


@pytest.mark.parametrize("idx", range(4))
def test_bfloat16_passes_and_errs_as_little_as_is_said(idx: int) -> None:
    prompt, tokens = prompts()[idx], plain(idx, "bfloat16")
    assert_same_up_to_ties(target(), prompt, tokens, plain(idx), BFLOAT16_TOLERANCE)
    error = logits_of(target("bfloat16"), prompt, tokens) - logits_of(target(), prompt, tokens)
    assert 0.0 < float(error.abs().max()) < BFLOAT16_TOLERANCE / 2


def test_a_wrong_token_fails_wherever_it_is() -> None:
    prompt, tokens = prompts()[0], list(plain(0))
    for at in (0, NEW // 2, NEW - 1):
        scores = logits_of(target(), prompt, tokens)[at]
        below = scores.max() - scores
        second = int(torch.where(below > BFLOAT16_TOLERANCE, below, torch.inf).argmin())
        wrong = [*tokens[:at], second, *tokens[at + 1 :]]
        # The tokens behind it were chosen for another text: any of them may be the worst.
        with pytest.raises(AssertionError, match="below the best"):
            assert_greedy(target(), prompt, wrong, BFLOAT16_TOLERANCE)
        with pytest.raises(AssertionError, match="below the best"):
            assert_same_up_to_ties(target(), prompt, tokens, wrong, BFLOAT16_TOLERANCE)
    with pytest.raises(AssertionError, match="at position 31"):
        assert_greedy(target(), prompt, wrong, BFLOAT16_TOLERANCE)


def test_output_of_another_seed_a_draft_or_a_shorter_one_fails() -> None:
    prompt = prompts()[1]
    with pytest.raises(AssertionError, match="below the best"):
        assert_greedy(target(), prompt, plain(1, temperature=1.0), BFLOAT16_TOLERANCE, Coupled(2))
    drafted = Engine(demo_pair()[1], policy="ar", lanes=SerialLanes(1)).generate(
        prompt, SamplingParams(max_new_tokens=NEW, ignore_eos=True)
    )
    with pytest.raises(AssertionError, match="below the best"):
        assert_greedy(target(), prompt, drafted.tokens, BFLOAT16_TOLERANCE)
    with pytest.raises(AssertionError):
        assert_same_up_to_ties(target(), prompt, plain(1), plain(1)[:-1], BFLOAT16_TOLERANCE)
