"""Rounds as captured graphs on a CUDA device give plain decoding's output.

The same tests run op by op on the CPU, on fewer prompts: so the tests are tested without a GPU.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from engine.near_ties import BFLOAT16_TOLERANCE, Coupled, assert_same_up_to_ties

from specbranch import Engine, SamplingParams, demo_pair, ops
from specbranch.lanes import SerialLanes
from specbranch.rounds.graphs import GraphRunner

PROMPTS = Path(__file__).resolve().parents[2] / "bench" / "prompts.txt"
NEW = 32
POLICIES = {
    "sps": {"policy": "sps", "gamma": 4},
    "specbranch": {"policy": "specbranch", "gamma": 4, "k_max": 3},
}


@dataclass(frozen=True)
class Place:
    """A device, and how many prompts are worth its time."""

    device: str
    num_prompts: int

    @property
    def judge(self):
        """The target in float32 on the CPU."""
        return pair("cpu", "float32")[0]

    def engine(self, dtype: str = "float32", **settings) -> Engine:
        target, draft, tokenizer = pair(self.device, dtype)
        given = {"rounds": "device", "max_seq_len": 128, "tokenizer": tokenizer}
        if self.device == "cpu":  # tests share their cores
            given["lanes"] = SerialLanes(1)
        return Engine(target, draft, **(given | settings))

    def outputs(
        self, dtype: str = "float32", temperature: float = 0.0, **settings
    ) -> list[list[int]]:
        """Of every prompt; its number is its seed."""
        engine = self.engine(dtype, **settings)
        outputs = []
        for idx, prompt in enumerate(self.prompts()):
            params = SamplingParams(max_new_tokens=NEW, temperature=temperature, seed=idx)
            outputs.append(engine.generate(prompt, params).tokens)
        self.check_runners(engine)
        return outputs

    def prompts(self) -> list[list[int]]:
        """Token ids; all different."""
        lines = PROMPTS.read_text(encoding="utf-8").splitlines()[: self.num_prompts]
        assert len(lines) == self.num_prompts
        return [pair("cpu", "float32")[2].encode(line) for line in lines]

    def check_runners(self, engine: Engine) -> None:
        """On CUDA the rounds were graphs."""
        runners = engine._pool.free
        assert runners
        assert all(isinstance(runner, GraphRunner) == (self.device == "cuda") for runner in runners)


@functools.cache
def pair(device: str, dtype: str):
    return demo_pair(device=device, dtype=dtype)


def _why_no_cuda() -> str | None:
    if not ops.backends()["cuda"]:
        return "this build has no CUDA backend"
    return None if torch.cuda.is_available() else "no CUDA device"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "cuda" and (reason := _why_no_cuda()):
        pytest.skip(reason)
    return Place(request.param, 20 if request.param == "cuda" else 3)


@pytest.mark.parametrize("policy", POLICIES)
def test_greedy_equals_ar(place: Place, policy: str) -> None:
    """Exactly: on these prompts the two best logits are never closer than 1e-3 in float32."""
    assert place.outputs(**POLICIES[policy]) == place.outputs(policy="ar")


@pytest.mark.parametrize("policy", POLICIES)
def test_coupled_equals_ar(place: Place, policy: str) -> None:
    given = {"temperature": 1.0, "verify": "coupled"}
    expected = place.outputs(policy="ar", **given)
    assert place.outputs(**POLICIES[policy], **given) == expected
    assert expected != place.outputs(policy="ar")


@pytest.mark.parametrize("policy", POLICIES)
def test_device_rounds_equal_those_of_the_host(place: Place, policy: str) -> None:
    host = place.engine(**POLICIES[policy], rounds="host")
    params = SamplingParams(max_new_tokens=NEW)
    outputs = [host.generate(prompt, params).tokens for prompt in place.prompts()]
    assert place.outputs(**POLICIES[policy]) == outputs


@pytest.mark.parametrize("policy", ["ar", *POLICIES])
def test_the_devices_output_is_the_cpus(place: Place, policy: str) -> None:
    here = Place("cpu", place.num_prompts)
    given = POLICIES.get(policy, {"policy": "ar"})
    assert place.outputs(**given) == here.outputs(**given)


@pytest.mark.parametrize("policy", POLICIES)
def test_bfloat16_differs_only_at_near_ties(place: Place, policy: str) -> None:
    settings = POLICIES[policy]
    outputs = place.outputs("bfloat16", **settings)
    expected = place.outputs("bfloat16", policy="ar")
    for prompt, got, wanted in zip(place.prompts(), outputs, expected, strict=True):
        shorter = min(len(got), len(wanted))  # an early end-of-sequence token may be such a tie
        assert_same_up_to_ties(
            place.judge, prompt, got[:shorter], wanted[:shorter], BFLOAT16_TOLERANCE
        )


@pytest.mark.parametrize("policy", POLICIES)
def test_coupled_bfloat16_differs_only_at_near_ties(place: Place, policy: str) -> None:
    given = {"temperature": 1.0, "verify": "coupled"}
    outputs = place.outputs("bfloat16", **POLICIES[policy], **given)
    expected = place.outputs("bfloat16", policy="ar", **given)
    for idx, prompt in enumerate(place.prompts()):
        shorter = min(len(outputs[idx]), len(expected[idx]))
        got, wanted = outputs[idx][:shorter], expected[idx][:shorter]
        assert_same_up_to_ties(
            place.judge, prompt, got, wanted, BFLOAT16_TOLERANCE, Coupled(seed=idx)
        )


@pytest.mark.parametrize("policy", ["ar", *POLICIES])
@pytest.mark.parametrize("params", [{}, {"top_k": 40, "top_p": 0.95}], ids=str)
def test_seeds_are_reproducible(place: Place, policy: str, params: dict) -> None:
    prompt = place.prompts()[0]
    engine = place.engine(**POLICIES.get(policy, {"policy": "ar"}))

    def tokens(seed: int) -> list[int]:
        wanted = SamplingParams(max_new_tokens=NEW, temperature=0.9, seed=seed, **params)
        return engine.generate(prompt, wanted).tokens

    first = [tokens(seed) for seed in range(3)]
    assert [tokens(seed) for seed in range(3)] == first
    assert len({tuple(output) for output in first}) == 3


def test_stop_strings_and_streaming(place: Place) -> None:
    engine = place.engine(**POLICIES["specbranch"])
    prompt = "def quicksort(items):"
    whole = engine.generate(prompt, SamplingParams(max_new_tokens=NEW)).text
    assert "".join(engine.stream(prompt, SamplingParams(max_new_tokens=NEW))) == whole
    assert len(list(engine.stream(prompt, SamplingParams(max_new_tokens=NEW)))) > 1
    stop = whole[len(whole) // 2 :][:3]
    stopped = engine.generate(prompt, SamplingParams(max_new_tokens=NEW, stop=stop))
    assert stopped.finish_reason == "stop" and stopped.text == whole[: whole.index(stop)]


def test_cancelling_leaves_the_engine_usable(place: Place) -> None:
    engine = place.engine(**POLICIES["specbranch"])
    prompt, params = place.prompts()[0], SamplingParams(max_new_tokens=NEW, ignore_eos=True)
    expected = engine.generate(prompt, params).tokens
    events = engine.events(prompt, params)
    first = next(events).tokens
    canceller = threading.Thread(target=engine.cancel)
    canceller.start()
    canceller.join()
    rest = [token for event in events for token in event.tokens]
    assert engine.last_result.finish_reason == "cancelled"
    assert first + rest == expected[: len(first) + len(rest)] and len(rest) == 0
    given_up = engine.events(prompt, params)
    next(given_up)
    given_up.close()
    assert engine.last_result.finish_reason == "cancelled"
    assert engine.generate(prompt, params).tokens == expected
    assert len(engine._pool.free) == 1
