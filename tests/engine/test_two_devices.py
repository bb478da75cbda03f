"""Target and draft on two devices: the same tokens as on one.

There is no second device here: the models' ``device`` is ``cpu:0`` and ``cpu:1``. Torch keeps such
tensors in one memory, but the engine takes them for two devices, so that everything that crosses
does so by a copy. That nothing else crosses is checked by a mode that knows each tensor's side.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine.pairs import DRAFT, TARGET, WAYS, Models, load, save
from engine.sides import Sides, watch_native

from specbranch import Engine, SamplingParams
from specbranch.lanes import SerialLanes
from specbranch.models.llama import LlamaModel
from specbranch.rounds.parcel import Parcel, Send, Step, Work
from specbranch.testing.table_model import TableModel

NEW = 40
PROMPTS = [[1, 2, 3], list(range(40, 90)), [7] * 12, [5]]
SETTINGS = [
    ("sps", {"gamma": 4}),
    ("specbranch", {"gamma": 1, "k_max": 1}),
    ("specbranch", {"gamma": 4, "k_max": 3}),
    ("specbranch", {"gamma": 3, "k_max": 6, "epsilon": 0.0}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def together(folder: Path) -> Models:
    return load(folder, (TARGET, TARGET))


@pytest.fixture(scope="module")
def apart(folder: Path) -> Models:
    return load(folder, (TARGET, DRAFT))


def poison_what_is_stale(steps: list[Step]) -> list[Step]:
    """The same round, which forgets what a side received as soon as that side is done with it.

    That is after its last work before the parcel is sent again, in this round or the one before.
    """
    out: list[Step] = list(steps)
    for step in steps:
        if not isinstance(step, Send):
            continue
        works = [s for s in steps if isinstance(s, Work) and s.side == step.parcel.receiver]
        before = [s for s in steps[: steps.index(step)] if s in works]
        last = (before or works)[-1]
        out.insert(out.index(last) + 1, Work(last.side, lambda p=step.parcel: fill(p)))
    return out


def fill(parcel: Parcel) -> None:
    parcel._received.fill_(0xFF)  # NaN, or -1


@pytest.mark.parametrize(("policy", "settings"), SETTINGS, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_equals_one_device(
    together: Models, apart: Models, policy: str, settings: dict, way: str
) -> None:
    params, more = WAYS[way]
    engines = [
        Engine(*models, policy=policy, rounds="device", max_seq_len=128, **settings, **more)
        for models in (together, apart)
    ]
    accepted = 0
    for seed, prompt in enumerate(PROMPTS):
        request = SamplingParams(max_new_tokens=NEW, seed=seed, ignore_eos=True, **params)
        one, two = (engine.generate(prompt, request) for engine in engines)
        assert two.tokens == one.tokens and two.origins == one.origins
        accepted += one.stats.accepted
        assert two.stats.rolled_back == one.stats.rolled_back
        (runner,) = engines[1]._pool.free
        if seed == 0:
            assert runner.program.devices.apart
            runner._steps = poison_what_is_stale(runner._steps)
    assert accepted > 0, "the test would not notice a draft that is never right"


@pytest.mark.parametrize("rounds", ["host", "device"])
@pytest.mark.parametrize("policy", ["sps", "specbranch"])
def test_stop_stream_and_cancel(together: Models, apart: Models, policy: str, rounds: str) -> None:
    engines = [
        Engine(*models, policy=policy, rounds=rounds, gamma=3, max_seq_len=128)
        for models in (together, apart)
    ]
    params = SamplingParams(max_new_tokens=30, ignore_eos=True)
    wanted = engines[0].generate([3, 4], params).tokens
    stream = engines[1].stream([3, 4], params)
    first = next(stream)
    assert first == wanted[: len(first)]
    engines[1].cancel()
    assert not list(stream)
    assert engines[1].last_result.finish_reason == "cancelled"
    assert engines[1].generate([3, 4], params).tokens == wanted


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", ["sps", "specbranch"])
def test_host_rounds(together: Models, apart: Models, policy: str, way: str) -> None:
    params, more = WAYS[way]
    request = SamplingParams(max_new_tokens=NEW, seed=3, ignore_eos=True, **params)
    one, two = (
        Engine(*models, policy=policy, rounds="host", gamma=4, **more).generate([1, 2, 3], request)
        for models in (together, apart)
    )
    assert two.tokens == one.tokens and two.origins == one.origins


def test_only_the_surviving_branch_travels(apart: Models) -> None:
    engine = Engine(*apart, gamma=4, k_max=3, rounds="device", max_seq_len=64)
    engine.generate([1, 2], SamplingParams(max_new_tokens=2))
    (runner,) = engine._pool.free
    sizes = [step.parcel._sent.numel() for step in runner._steps if isinstance(step, Send)]
    vocab = apart[0].vocab_size
    assert sum(sizes) < 4 * vocab * 4 + 20 * 256, "gamma rows of float32 logits, and small things"
    coupled = Engine(*apart, gamma=4, verify="coupled", rounds="device", max_seq_len=64)
    coupled.generate([1, 2], SamplingParams(max_new_tokens=2))
    steps = coupled._pool.free[0]._steps
    assert sum(s.parcel._sent.numel() for s in steps if isinstance(s, Send)) < 20 * 256


def test_a_draft_elsewhere_than_on_cuda_or_cpu_alike(together: Models) -> None:
    table = TableModel.random(together[0].vocab_size, 0)
    table.device = torch.device("cuda", 0)
    target, draft = together
    fake = load_like(draft, torch.device("cuda", 1))
    with pytest.raises(ValueError, match=r"draft was on cuda:1 and target on cpu:0"):
        Engine(target, fake, rounds="device")
    assert Engine(target, fake)._pool is None


def load_like(model: LlamaModel, device: torch.device) -> LlamaModel:
    """The same model, said to be elsewhere."""
    other = object.__new__(LlamaModel)
    other.__dict__ = model.__dict__ | {"device": device}
    return other


# ---------------------------------------------------------------------------------- no mixing
@pytest.mark.parametrize("rounds", ["host", "device"])
@pytest.mark.parametrize(("policy", "way"), [("sps", "coupled"), ("specbranch", "cut")])
def test_no_launch_mixes_devices(
    folder: Path, monkeypatch, policy: str, way: str, rounds: str
) -> None:
    # backend "simt": all layers are single ops, as on a GPU. One thread: the mode is a thread's.
    sides, (target, draft) = Sides(TARGET, DRAFT), load(folder, (TARGET, DRAFT), backend="simt")
    watch_native(monkeypatch, sides, target, draft)
    params, more = WAYS[way]
    engine = Engine(
        target,
        draft,
        policy=policy,
        rounds=rounds,
        max_seq_len=32,
        gamma=2,
        k_max=2,
        lanes=SerialLanes(1),
        **more,
    )
    with sides:
        engine.generate([1, 2, 3], SamplingParams(max_new_tokens=4, ignore_eos=True, **params))
    assert min(sides.calls.values()) > 50
    assert (sides.copies >= 5) == (rounds == "device")
    with sides, pytest.raises(AssertionError, match="both devices"):
        target.embedding + draft.embedding
