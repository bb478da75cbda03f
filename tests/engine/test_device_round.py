"""Rounds whose state lives on the device: the tokens of the rounds that the host directs.

Run op by op on the CPU, where a row of a product has the same bits in both, so that equality
is exact, in sampling too. Only the end may differ: there the host drafts shorter chains.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import save_checkpoint

from specbranch import Engine, SamplingParams, load_model
from specbranch.models.llama import LlamaModel
from specbranch.rounds import EagerRunner
from specbranch.testing.table_model import TableModel

NEW = 48
PROMPTS = [[1, 2, 3], list(range(40, 90)), [7] * 12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def models(folder: Path) -> tuple[LlamaModel, LlamaModel]:
    """A draft that is the target with noise: right often, wrong often."""
    target = load_model(save_checkpoint(folder / "t", hidden_size=64, num_layers=2, seed=0))
    draft = load_model(save_checkpoint(folder / "d", hidden_size=64, num_layers=2, seed=0))
    generator = torch.Generator().manual_seed(1)
    draft.embedding.add_(0.08 * torch.randn(draft.embedding.shape, generator=generator))
    return target, draft


def engine(models: tuple[LlamaModel, LlamaModel], rounds: str, policy: str, **settings) -> Engine:
    return Engine(*models, policy=policy, rounds=rounds, max_seq_len=256, **settings)


WAYS = {
    "greedy": ({"temperature": 0.0}, {}),
    "sampled": ({"temperature": 1.0}, {}),
    "cut": ({"temperature": 0.9, "top_k": 40, "top_p": 0.95}, {}),
    "coupled": ({"temperature": 1.0}, {"verify": "coupled"}),
}
SETTINGS = [
    ("ar", {}),
    ("sps", {"gamma": 1}),
    ("sps", {"gamma": 4}),
    ("specbranch", {"gamma": 1, "k_max": 1}),
    ("specbranch", {"gamma": 4, "k_max": 3}),
    ("specbranch", {"gamma": 3, "k_max": 6, "epsilon": 0.0}),
    ("specbranch", {"gamma": 5, "k_max": 2, "epsilon": 0.6}),
]


@pytest.mark.parametrize(("policy", "settings"), SETTINGS, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_equals_the_rounds_of_the_host(models, policy: str, settings: dict, way: str) -> None:
    params, more = WAYS[way]
    settings = settings | more
    host, device = (engine(models, rounds, policy, **settings) for rounds in ("host", "device"))
    tail = 2 * settings.get("gamma", 0) + 2
    accepted = 0
    for seed, prompt in enumerate(PROMPTS):
        request = SamplingParams(max_new_tokens=NEW, seed=seed, ignore_eos=True, **params)
        wanted, got = host.generate(prompt, request), device.generate(prompt, request)
        assert len(got.tokens) == NEW
        same = NEW if way in ("greedy", "coupled") else NEW - tail
        assert got.tokens[:same] == wanted.tokens[:same]
        assert got.origins[: NEW - tail] == wanted.origins[: NEW - tail]
        accepted += got.stats.accepted
        assert got.stats.rounds == got.stats.target_forwards
    if policy != "ar":
        assert accepted > 0, "the test would not notice a draft that is never right"


def test_one_token_prompts_and_reuse(models) -> None:
    """The same runner serves request after request, also after one that was given up."""
    host, device = (engine(models, rounds, "specbranch", gamma=3) for rounds in ("host", "device"))
    params = SamplingParams(max_new_tokens=20, ignore_eos=True)
    for prompt in ([5], [9], list(range(30))):
        assert device.generate(prompt, params).tokens == host.generate(prompt, params).tokens
        given_up = device.stream(prompt, params)
        next(given_up)
        given_up.close()
    assert device._pool is not None and len(device._pool.free) == 1
    both = [device.events(PROMPTS[i], params) for i in (0, 1)]
    tokens: list[list[int]] = [[], []]
    for events in zip(*both, strict=False):  # interleaved: each has a runner of its own
        for out, event in zip(tokens, events, strict=True):
            out += event.tokens
    for i in (0, 1):
        wanted = host.generate(PROMPTS[i], params).tokens
        assert tokens[i] == wanted[: len(tokens[i])] and len(tokens[i]) > 4


def test_times(models) -> None:
    """Where the seconds went: on a CPU launching is working."""
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    for policy in ("ar", "sps", "specbranch"):
        stats = engine(models, "device", policy).generate([1, 2, 3], params).stats
        assert 0 < stats.target_seconds < stats.host_seconds < stats.decode_seconds
        assert stats.bubble == 1 - stats.target_seconds / stats.decode_seconds
        if policy != "ar":
            assert stats.target_seconds < 0.9 * stats.host_seconds, "the draft's time is not in it"
        assert engine(models, "host", policy).generate([1, 2, 3], params).stats.host_seconds == 0


def test_room_to_the_last_token(models) -> None:
    prompt = [3] * 200
    params = SamplingParams(max_new_tokens=56, ignore_eos=True)
    for policy in ("ar", "sps", "specbranch"):
        host, device = (engine(models, rounds, policy, gamma=8) for rounds in ("host", "device"))
        assert device.generate(prompt, params).tokens == host.generate(prompt, params).tokens


def test_waiting_is_no_cost_of_the_host(models, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, pause = list(range(8)), 0.02
    params = SamplingParams(max_new_tokens=8, temperature=0.0, ignore_eos=True)
    waitless = EagerRunner.report

    def report(runner: EagerRunner, number: int) -> list[int]:
        time.sleep(pause)
        return waitless(runner, number)

    monkeypatch.setattr(EagerRunner, "report", report)
    stats = engine(models, "device", "ar").generate(prompt, params).stats
    assert stats.rounds == 8
    assert 0 < stats.host_seconds <= stats.seconds - stats.rounds * pause
    assert engine(models, "host", "ar").generate(prompt, params).stats.host_seconds == 0


def test_nan_is_reported(models) -> None:
    device = engine(models, "device", "specbranch")
    events = device.events([1, 2, 3], SamplingParams(max_new_tokens=20, temperature=1.0))
    next(events)
    request = device._active[0]
    request.session.target.cache.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="target or draft gave NaN logits between positions"):
        list(events)


def test_what_cannot_run_there_is_refused(models) -> None:
    with pytest.raises(ValueError, match="rounds was 'moon'; it must be host or device"):
        engine(models, "moon", "ar")
    with pytest.raises(ValueError, match='draft_stage was "serial"; on the device'):
        engine(models, "device", "specbranch", draft_stage="serial")
    table = TableModel.random(8, 0)
    with pytest.raises(ValueError, match="target was TableModel; on the device"):
        Engine(table, policy="ar", rounds="device")
