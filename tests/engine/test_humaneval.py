"""Greedy output of every policy equals plain decoding on 50 HumanEval prompts, token for token.

SpecBranch has 24 combinations of settings here. Each takes every other prompt, even or odd, such
that at each gamma two combinations that differ in one setting meet all 50 prompts together.
"""

from __future__ import annotations

import functools

import pytest

from specbranch import Engine, SamplingParams, demo_pair
from specbranch.prompts import humaneval

NUM_PROMPTS, NEW_TOKENS = 50, 32
ALL = range(NUM_PROMPTS)
EVEN, ODD = ALL[::2], ALL[1::2]
# The methods beside SpecBranch, with outputs half as long.
FEW_TOKENS = NEW_TOKENS // 2
BASELINES = [
    {"policy": "adaedl", "gamma": 4},
    {"policy": "pearl", "gamma": 4},
    {"policy": "fanout", "gamma": 4, "k_max": 4},
    {"policy": "lookahead", "gamma": 3, "k_max": 2, "window": 3},
    {"policy": "ngram", "gamma": 4},
]
SPECBRANCH = [
    (gamma, k_max, stage, verify)
    for gamma in (1, 4, 8)
    for k_max in (1, 4)
    for stage in ("serial", "overlap")
    for verify in ("rejection", "coupled")
]


@functools.cache
def _pair():
    return demo_pair()


@functools.cache
def _prompts() -> list[list[int]]:
    tokenizer = _pair()[2]
    return [tokenizer.encode(prompt) for prompt in humaneval(NUM_PROMPTS)]


def _outputs(
    temperature: float = 0.0,
    max_new_tokens: int = NEW_TOKENS,
    which: range = ALL,
    **settings: object,
) -> list[list[int]]:
    target, draft, tokenizer = _pair()
    engine = Engine(target, draft, tokenizer=tokenizer, **settings)
    outputs = []
    for idx in which:
        params = SamplingParams(max_new_tokens, temperature=temperature, seed=idx)
        outputs.append(engine.generate(_prompts()[idx], params).tokens)
    return outputs


def _of(which: range, outputs: list[list[int]]) -> list[list[int]]:
    return [outputs[idx] for idx in which]


@functools.cache
def _plain(temperature: float = 0.0, verify: str = "rejection") -> list[list[int]]:
    return _outputs(temperature, policy="ar", verify=verify)


def test_the_prompts_are_there() -> None:
    assert len(_prompts()) == NUM_PROMPTS
    assert len({tuple(tokens) for tokens in _plain()}) > NUM_PROMPTS // 2


@pytest.mark.parametrize("verify", ["rejection", "coupled"])
@pytest.mark.parametrize("gamma", [1, 4, 8])
def test_sps_equals_ar(gamma: int, verify: str) -> None:
    assert _outputs(policy="sps", gamma=gamma, verify=verify) == _plain()


@pytest.mark.parametrize(("gamma", "k_max", "stage", "verify"), SPECBRANCH)
def test_specbranch_equals_ar(gamma: int, k_max: int, stage: str, verify: str) -> None:
    which = ODD if (k_max == 4) ^ (stage == "overlap") ^ (verify == "coupled") else EVEN
    outputs = _outputs(gamma=gamma, k_max=k_max, draft_stage=stage, verify=verify, which=which)
    assert outputs == _of(which, _plain())


@pytest.mark.parametrize("settings", [{"policy": "sps"}, {}, {"draft_stage": "serial"}], ids=str)
def test_coupled_equals_ar_at_temperature_one(settings: dict) -> None:
    assert _outputs(1.0, verify="coupled", **settings) == _plain(1.0, "coupled")
    assert _plain(1.0, "coupled") != _plain()


def _begin(outputs: list[list[int]]) -> list[list[int]]:
    return [tokens[:FEW_TOKENS] for tokens in outputs]


@pytest.mark.parametrize("verify", ["rejection", "coupled"])
@pytest.mark.parametrize("settings", BASELINES, ids=lambda settings: settings["policy"])
def test_other_methods_equal_ar(settings: dict, verify: str) -> None:
    outputs = _outputs(max_new_tokens=FEW_TOKENS, verify=verify, **settings)
    assert outputs == _begin(_plain())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_auto_equals_ar(temperature: float) -> None:
    outputs = _outputs(temperature, FEW_TOKENS, EVEN, policy="auto")
    assert outputs == _of(EVEN, _begin(_plain(temperature, "coupled")))


@pytest.mark.parametrize("settings", BASELINES, ids=lambda settings: settings["policy"])
def test_other_methods_coupled_equal_ar_at_temperature_one(settings: dict) -> None:
    outputs = _outputs(1.0, FEW_TOKENS, ODD, verify="coupled", **settings)
    assert outputs == _of(ODD, _begin(_plain(1.0, "coupled")))
