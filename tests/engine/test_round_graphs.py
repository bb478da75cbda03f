"""Graphs and streams of rounds, on a pretended CUDA (``sides.py``): no GPU has run them yet.

A replay runs the very functions that were captured over the very memory, so a value that was baked
in, or a wait that is missing, shows; what a real GPU may add (a library call that cannot be
captured) does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine.pairs import DRAFT, TARGET, WAYS, Models, load, save
from engine.sides import PretendedCuda, Sides, pretend_cuda, watch_native

from specbranch import Engine, SamplingParams
from specbranch.rounds import RunnerPool, streams
from specbranch.rounds.graphs import GraphRunner, PairRunner
from specbranch.rounds.parcel import Devices, Send
from specbranch.rounds.program import RoundProgram
from specbranch.rounds.streams import Streams

REQUESTS = [([1, 2, 3], 0, 0.9), ([7] * 12, 1, 1.3), ([5], 2, 0.6)]
PLACES = {"together": (TARGET, TARGET), "apart": (TARGET, DRAFT)}
POLICIES = {"ar": {}, "sps": {"gamma": 3}, "specbranch": {"gamma": 3, "k_max": 3}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("pair"))


@pytest.fixture(params=PLACES)
def models(request: pytest.FixtureRequest, folder: Path) -> Models:
    return load(folder, PLACES[request.param])


class Pretended:
    """Engines whose rounds are graphs on the pretended CUDA."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, models: Models) -> None:
        self.models, self.devices = models, Devices(models[0].device, models[1].device)
        self.sides = Sides(*dict.fromkeys(self.devices))
        watch_native(monkeypatch, self.sides, *models)
        self.cuda: PretendedCuda = pretend_cuda(monkeypatch, self.sides)
        monkeypatch.setattr(RunnerPool, "_on_cuda", lambda pool: True)

    def engine(self, policy: str, **settings: Any) -> Engine:
        return Engine(*self.models, policy=policy, rounds="device", max_seq_len=96, **settings)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, models: Models) -> Pretended:
    return Pretended(monkeypatch, models)


def request_of(seed: int, temperature: float, way: str, new: int = 16) -> SamplingParams:
    params = WAYS[way][0] | ({} if way == "greedy" else {"temperature": temperature})
    return SamplingParams(max_new_tokens=new, seed=seed, ignore_eos=True, **params)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", POLICIES)
def test_replays_equal_eager_rounds(
    monkeypatch: pytest.MonkeyPatch, models: Models, policy: str, way: str
) -> None:
    settings = POLICIES[policy] | WAYS[way][1]
    eager = Engine(*models, policy=policy, rounds="device", max_seq_len=96, **settings)
    asked = [(prompt, request_of(seed, heat, way)) for prompt, seed, heat in REQUESTS]
    wanted = [eager.generate(*request).tokens for request in asked]
    pretended = Pretended(monkeypatch, models)
    with pretended.sides:
        engine = pretended.engine(policy, **settings)
        assert [engine.generate(*request).tokens for request in asked] == wanted
        (runner,) = engine._pool.free
    apart = pretended.devices.apart and policy != "ar"
    assert isinstance(runner, PairRunner if apart else GraphRunner)
    assert (pretended.sides.copies > 0) == apart


def test_a_missing_wait_is_found(pretended: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above could fail."""
    request = request_of(0, 0.9, "sampled")
    monkeypatch.setattr(Streams, "send", lambda streams, parcel: parcel.copy())
    with pretended.sides, pytest.raises((AssertionError, RuntimeError), match="races with"):
        pretended.engine("specbranch").generate([1, 2, 3], request)


def test_a_missing_fork_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = Pretended(monkeypatch, load(folder, PLACES["together"]))
    wait = pretended.cuda.Stream.wait_stream

    def wait_for_all_but_the_target(stream: Any, other: Any) -> None:
        if pretended.cuda.tape is None or other.priority != 0:
            wait(stream, other)

    monkeypatch.setattr(pretended.cuda.Stream, "wait_stream", wait_for_all_but_the_target)
    with pretended.sides, pytest.raises(RuntimeError, match="ran on a stream that was not forked"):
        pretended.engine("specbranch").generate([1, 2, 3], request_of(0, 0.9, "sampled"))


def test_what_cannot_be_captured_is_said(
    pretended: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = RoundProgram._judge

    def reads_a_value(program: RoundProgram) -> None:
        judge(program)
        if pretended.cuda.tape is not None:
            int(program.state.length)

    monkeypatch.setattr(RoundProgram, "_judge", reads_a_value)
    message = r"a round of SpecBranchProgram could not be captured as a CUDA graph \(.*capture"
    with pretended.sides, pytest.raises(RuntimeError, match=message) as caught:
        pretended.engine("specbranch").generate([1, 2, 3], request_of(0, 1.0, "sampled"))
    assert "rounds='host'" in str(caught.value)


def test_runners_are_kept_per_kind_and_bounded(pretended: Pretended) -> None:
    with pretended.sides:
        engine = pretended.engine("specbranch", gamma=2)
        plain, cut = request_of(0, 1.0, "sampled", 4), request_of(0, 1.0, "cut", 4)
        for params in (plain, cut, plain, cut):
            engine.generate([1, 2, 3], params)
        first = list(engine._pool.free)
        assert [runner.has_cutoff for runner in first] == [False, True]
        several = [engine.events([1, 2, 3], params) for params in (plain, plain, cut, plain)]
        assert engine._pool.free == []
        for events in several:
            list(events)
        assert len(engine._pool.free) == 2
        # Given up with rounds under way, which touch the caches that the next request takes.
        stream = engine.stream([4, 5, 6], plain)
        next(stream)
        stream.close()
        assert engine.generate([1, 2, 3], plain).tokens == engine.generate([1, 2, 3], plain).tokens


def test_two_requests_take_turns(pretended: Pretended) -> None:
    params = request_of(3, 1.0, "sampled", 16)
    with pretended.sides:
        engine = pretended.engine("specbranch", gamma=2)
        alone = [engine.generate(prompt, params).tokens for prompt in ([1, 2, 3], [9, 8])]
        both = [engine.events(prompt, params) for prompt in ([1, 2, 3], [9, 8])]
        tokens: list[list[int]] = [[], []]
        for events in zip(*both, strict=False):
            for out, event in zip(tokens, events, strict=True):
                out += event.tokens
    for got, wanted in zip(tokens, alone, strict=True):
        assert len(got) > 4 and got == wanted[: len(got)]


def test_the_draft_has_priority(pretended: Pretended) -> None:
    with pretended.sides:
        pool = pretended.engine("specbranch")._pool
    assert pool._streams.draft.priority == -1 and pool._streams.target.priority == 0


def test_parcels_of_one_device_are_the_same_memory(pretended: Pretended) -> None:
    with pretended.sides:
        runner = pretended.engine("specbranch")._pool.take(request_of(0, 1.0, "sampled"))
    for step in runner._steps:
        if isinstance(step, Send):
            same = step.parcel._sent is step.parcel._received
            assert same != pretended.devices.apart


# ---------------------------------------------------------------------------------- green context
class FakeGreenContext:
    """``torch.cuda.green_contexts.GreenContext``."""

    made: list[dict[str, Any]] = []  # noqa: RUF012

    @classmethod
    def create(cls, **arguments: Any) -> FakeGreenContext:
        cls.made.append(arguments)
        return cls()

    def Stream(self) -> Any:
        stream = torch.cuda.Stream(DRAFT)
        stream.is_green = True
        return stream


class Properties:
    multi_processor_count = 132


def test_the_draft_runs_in_a_green_context(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.cuda.green_contexts as home

    models = load(folder, PLACES["apart"])
    pretended = Pretended(monkeypatch, models)
    monkeypatch.setattr(home, "GreenContext", FakeGreenContext)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    with pretended.sides:
        engine = pretended.engine("specbranch", draft_sms=24)
        assert FakeGreenContext.made[-1] == {"num_sms": 24, "device_id": DRAFT.index}
        assert len(engine.generate([1, 2, 3], request_of(0, 1.0, "sampled", 8)).tokens) == 8
        green = engine._pool._streams.draft
        assert green.is_green and green.clock[green.idx] > 100, "the draft's work ran there"
        with pytest.raises(ValueError, match="draft_sms was 133; cpu:1 has 132 multiprocessors"):
            streams.green_stream(DRAFT, 133)
    monkeypatch.setattr(home, "GreenContext", object)
    with pytest.raises(ValueError, match="draft_sms was 8; it needs green contexts, which torch"):
        streams.green_stream(DRAFT, 8)


def test_draft_sms_is_checked(folder: Path) -> None:
    models = load(folder, PLACES["together"])
    for rounds in ("host", None):
        with pytest.raises(ValueError, match="draft_sms was 8; it needs rounds='device'"):
            Engine(*models, rounds=rounds, draft_sms=8)
    with pytest.raises(ValueError, match="draft_sms was 8 with a draft on cpu:0; it needs"):
        Engine(*models, rounds="device", draft_sms=8)
    with pytest.raises(ValueError, match="draft_sms was 8 with no draft; it needs"):
        Engine(*models, policy="ar", rounds="device", draft_sms=8)
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"draft_sms was {bad}"):
            Engine(*models, rounds="device", draft_sms=bad)
    with pytest.raises(TypeError, match="draft_sms was"):
        Engine(*models, rounds="device", draft_sms=1.5)
