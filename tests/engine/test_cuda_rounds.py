"""Rounds on real CUDA devices: what the pretended ones of ``test_round_graphs.py`` cannot show."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from engine.pairs import WAYS, Models
from tiny_checkpoint import save_checkpoint

from specbranch import Engine, SamplingParams, load_model
from specbranch.devices import why_no_cuda
from specbranch.rounds.graphs import GraphRunner, PairRunner

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(bool(why_no_cuda()), reason=", ".join(why_no_cuda()) or "CUDA is there"),
]
POLICIES = ["ar", "sps", "specbranch"]
EXACT = ["greedy", "coupled"]  # the other ways depend on the last bit of a logit
two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    for name in "td":
        save_checkpoint(folder / name, hidden_size=64, num_layers=2, seed=0)
    return folder


def load(folder: Path, *devices: str) -> Models:
    target, draft = (
        load_model(folder / name, dtype="float32", device=device)
        for name, device in zip("td", devices, strict=True)
    )
    noise = torch.Generator().manual_seed(1)
    noise_like = torch.randn(draft.embedding.shape, generator=noise).to(draft.device)
    draft.embedding.add_(0.08 * noise_like)
    return target, draft


def check(folder: Path, devices: tuple[str, str], policy: str, way: str, **settings: int) -> Engine:
    """Rounds of ``policy`` on ``devices`` give what plain decoding on the host's orders gives."""
    params, more = WAYS[way]
    models = load(folder, *devices)
    plain = Engine(*models, policy="ar", rounds="host", max_seq_len=128, **more)
    engine = Engine(*models, policy=policy, rounds="device", max_seq_len=128, **more, **settings)
    for seed, prompt in enumerate([[1, 2, 3], [5], list(range(40, 70)), [1, 2, 3]]):
        request = SamplingParams(max_new_tokens=48, seed=seed, ignore_eos=True, **params)
        wanted, got = plain.generate(prompt, request), engine.generate(prompt, request)
        assert got.tokens == wanted.tokens
        assert got.stats.target_seconds > 0 and got.stats.host_seconds > 0
    return engine


@pytest.mark.parametrize("way", EXACT)
@pytest.mark.parametrize("policy", POLICIES)
def test_one_device(folder: Path, policy: str, way: str) -> None:
    engine = check(folder, ("cuda:0", "cuda:0"), policy, way)
    assert isinstance(engine._pool.free[0], GraphRunner)


@two_devices
@pytest.mark.parametrize("way", EXACT)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("devices", [("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")], ids=str)
def test_two_devices(folder: Path, devices: tuple[str, str], policy: str, way: str) -> None:
    engine = check(folder, devices, policy, way)
    assert isinstance(engine._pool.free[0], GraphRunner if policy == "ar" else PairRunner)


def test_a_draft_on_the_cpu(folder: Path) -> None:
    target, draft = load(folder, "cuda:0", "cpu")
    engine = Engine(target, draft, max_seq_len=64)
    assert engine._pool is None, "the host directs such rounds"
    request = SamplingParams(max_new_tokens=24, ignore_eos=True)
    plain = Engine(target, policy="ar", rounds="host").generate([1, 2, 3], request)
    assert engine.generate([1, 2, 3], request).tokens == plain.tokens


@pytest.mark.parametrize("way", ["sampled", "cut"])
def test_seeds_and_kinds(folder: Path, way: str) -> None:
    """One seed gives one output, whatever ran before on the same graphs."""
    engine = Engine(*load(folder, "cuda:0", "cuda:0"), rounds="device", max_seq_len=64)
    asked = [SamplingParams(max_new_tokens=24, seed=seed, **WAYS[way][0]) for seed in (1, 2)]
    first, other, again = (engine.generate([1, 2, 3], asked[idx]).tokens for idx in (0, 1, 0))
    assert first == again and first != other


def test_given_up_and_dropped(folder: Path) -> None:
    """Rounds that run ahead do not write to memory that was freed."""
    models = load(folder, "cuda:0", "cuda:0")
    for _ in range(3):
        engine = Engine(*models, rounds="device", max_seq_len=64)
        stream = engine.stream([1, 2, 3], SamplingParams(max_new_tokens=40, ignore_eos=True))
        next(stream)
        stream.close()
        del engine, stream
        gc.collect()
        canary = torch.zeros(1 << 22, device="cuda:0")
        torch.cuda.synchronize()
        assert not canary.any()


def test_a_share_of_the_multiprocessors(folder: Path) -> None:
    try:
        check(folder, ("cuda:0", "cuda:0"), "specbranch", "greedy", draft_sms=16)
    except ValueError as error:
        if "it needs green contexts" not in str(error):
            raise
        pytest.skip(str(error))
