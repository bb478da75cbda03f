"""Batches: each request comes out as it does alone, whoever shares its forwards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.featured import FeaturedTable
from engine.pairs import load, save
from engine.test_engine import VOCAB, Letters, _pair

from specbranch import Engine, GenerationResult, SamplingParams, load_tokenizer
from specbranch.batching import hub as hub_module
from specbranch.lanes import SerialLanes
from specbranch.models.padded import PaddedModel
from specbranch.models.protocol import ForwardOutput
from specbranch.policies import POLICIES
from specbranch.predictor import Keep
from specbranch.testing.table_model import TableModel, TableState

BATCHED = [name for name in POLICIES if name != "auto"]
LENGTHS = (1, 40, 7, 23, 60, 2, 31)
WAYS = {
    "greedy": (0.0, "rejection"),
    "coupled": (0.8, "coupled"),
    "rejection": (0.8, "rejection"),
}
# Of Stats: what does not hang on the clock.
COUNTERS = (
    "prompt_tokens", "new_tokens", "rounds", "target_forwards", "draft_forwards", "committed",
    "drafted", "accepted", "rejections", "accepted_chain", "rolled_back", "pruned",
    "sibling_tokens", "branch_points", "branch_hits",
)  # fmt: skip


def prompts_of(vocab: int) -> list[list[int]]:
    """Of different lengths, the first of them a single token where a model can do with it."""
    shortest = 1 if vocab == 256 else 2  # a table looks two tokens back
    return [
        [(7 * idx + 3 * at * at) % vocab for at in range(shortest + 5 * idx)]
        for idx in range(len(LENGTHS))
    ]


def params_of(temperature: float, **more: Any) -> list[SamplingParams]:
    """Every request with a length and a seed of its own, some with cutoffs."""
    return [
        SamplingParams(
            max_new_tokens=length,
            seed=100 + idx,
            temperature=temperature * (1.0 + 0.1 * idx),
            top_k=8 if idx % 3 == 1 else 0,
            top_p=0.9 if idx % 3 == 2 else 1.0,
            **more,
        )
        for idx, length in enumerate(LENGTHS)
    ]


def outcome(result: GenerationResult) -> tuple[Any, ...]:
    """All of a result but for its times."""
    counts = [getattr(result.stats, name) for name in COUNTERS]
    return result.tokens, result.origins, result.text, result.finish_reason, counts


def check_equal(
    engine: Engine, prompts: list[Any], params: list[SamplingParams], max_batch: int = 3
) -> list[GenerationResult]:
    """Together as alone; returns the results."""
    alone = [engine.generate(*each) for each in zip(prompts, params, strict=True)]
    both = engine.generate(prompts, params, max_batch=max_batch)
    assert list(map(outcome, both)) == list(map(outcome, alone))
    report = engine.last_batch
    assert report is not None and report.results == both
    total = sum(result.stats.target_forwards for result in alone)
    assert report.target_forwards * report.target_rows == pytest.approx(total)
    return both


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("pair"))


def llama_pair(folder: Path) -> tuple[Any, Any]:
    return load(folder, (torch.device("cpu"), torch.device("cpu")))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", BATCHED)
def test_a_request_is_what_it_is_alone(policy: str, way: str, llamas: Path) -> None:
    temperature, verify = WAYS[way]
    for pair, vocab in ((_pair(), VOCAB), (llama_pair(llamas), 256)):
        engine = Engine(*pair, policy=policy, verify=verify, threads=2)
        results = check_equal(engine, prompts_of(vocab), params_of(temperature))
        assert [len(result.tokens) for result in results] == list(LENGTHS)


@pytest.mark.parametrize("lanes", [None, SerialLanes(1)], ids=["threads", "serial"])
@pytest.mark.parametrize("stage", ["serial", "overlap"])
@pytest.mark.parametrize("policy", ["specbranch", "fanout"])
def test_draft_stages_and_lanes(policy: str, stage: str, lanes: Any, llamas: Path) -> None:
    """A request that drafts alone after a rejection does not keep the others from sharing."""
    engine = Engine(
        *llama_pair(llamas), policy=policy, draft_stage=stage, epsilon=0.3, gamma=4, lanes=lanes
    )
    check_equal(engine, prompts_of(256), params_of(1.0))


@pytest.mark.parametrize("policy", BATCHED)
def test_every_target_forward_is_shared(policy: str, llamas: Path) -> None:
    """As many forwards as the longest request has, where all enter at once."""
    for pair, vocab in ((_pair(), VOCAB), (llama_pair(llamas), 256)):
        engine = Engine(*pair, policy=policy)
        results = engine.generate(prompts_of(vocab), params_of(0.7))
        report = engine.last_batch
        assert report is not None
        rounds = [result.stats.target_forwards for result in results]
        assert report.target_forwards == max(rounds)
        if pair[1] is not None and results[1].stats.draft_forwards:
            drafts = sum(result.stats.draft_forwards for result in results)
            assert report.draft_forwards * report.draft_rows == pytest.approx(drafts)
            assert report.draft_rows > 2


@pytest.mark.parametrize("max_batch", [1, 2, 7, 100])
def test_requests_enter_and_leave(max_batch: int) -> None:
    engine = Engine(*_pair(), tokenizer=Letters())
    check_equal(engine, prompts_of(VOCAB), params_of(0.9), max_batch)
    seen: list[int] = []
    for index, event in engine.events_batch(prompts_of(VOCAB), params_of(0.9), max_batch=max_batch):
        assert event.tokens or event.text
        seen.append(index)
    # By a prompt's first event all but max_batch - 1 of those before it have had their last one.
    for index in range(len(LENGTHS)):
        before = [each for each in range(index) if each in seen[seen.index(index) :]]
        assert len(before) < max_batch


def test_events_add_up_to_the_results() -> None:
    engine = Engine(*_pair(), tokenizer=Letters())
    params = params_of(0.9, stop=("dd", "jab"))
    tokens: list[list[int]] = [[] for _ in LENGTHS]
    texts = [""] * len(LENGTHS)
    for index, event in engine.events_batch(prompts_of(VOCAB), params):
        tokens[index] += event.tokens
        texts[index] += event.text
    assert engine.last_batch is not None
    results = engine.last_batch.results
    assert [result.tokens for result in results] == tokens
    assert [result.text for result in results] == texts


def test_stop_strings_and_eos(llamas: Path) -> None:
    target, draft = _pair()
    target.eos_token_ids = (4,)
    engine = Engine(target, draft, tokenizer=Letters())
    params = params_of(0.9, stop=("dd", "jab", "c"))
    params[3] = replace(params[3], ignore_eos=True)
    results = check_equal(engine, prompts_of(VOCAB), params)
    assert {"eos", "stop", "length"} == {result.finish_reason for result in results}
    target, draft = llama_pair(llamas)
    engine = Engine(target, draft, tokenizer=load_tokenizer(llamas / "t"))
    check_equal(engine, ["def f(x):", "a", "if x:\n"], params_of(0.9)[1:4])


class FromToken:
    """A predictor that says something else about every token."""

    hidden_layers = 1

    def predict(self, hidden: torch.Tensor, next_token: int) -> Keep:
        """By the features that the target gives, so that those of another request would show."""
        return Keep(int(hidden.abs().sum().item() * 1000 + next_token) % 3)


def test_hidden_layers(llamas: Path) -> None:
    table, draft = _pair()
    for pair, vocab in (((FeaturedTable(table.table), draft), VOCAB), (llama_pair(llamas), 256)):
        engine = Engine(*pair, predictor=FromToken(), epsilon=0.3, gamma=4)
        check_equal(engine, prompts_of(vocab), params_of(1.0))


def test_a_padded_draft(llamas: Path) -> None:
    """It has no native steps: its single forwards are shared."""
    target, draft = llama_pair(llamas)
    padded = PaddedModel(draft, 300)
    padded.vocab_size = 256  # both ways of fitting are test_padded's
    for policy in ("sps", "specbranch"):
        engine = Engine(target, padded, policy=policy)
        check_equal(engine, prompts_of(256), params_of(0.8))
        assert engine.last_batch is not None and engine.last_batch.draft_rows > 1.5


def test_crossed_rows_are_seen(llamas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power: a hub that gives two requests each other's logits fails these tests."""
    right = hub_module.forward_batch

    def crossed(*args: Any, **kwargs: Any) -> list[ForwardOutput]:
        outputs = right(*args, **kwargs)
        same = len(outputs) > 1 and outputs[0].logits.shape == outputs[1].logits.shape
        return [outputs[1], outputs[0], *outputs[2:]] if same else outputs

    engine = Engine(*llama_pair(llamas), policy="ar")
    check_equal(engine, prompts_of(256), params_of(0.0))
    monkeypatch.setattr(hub_module, "forward_batch", crossed)
    with pytest.raises(AssertionError):
        check_equal(engine, prompts_of(256), params_of(0.0))


# ---------------------------------------------------------------------------- what it is given
def test_kinds_of_prompts() -> None:
    engine = Engine(*_pair(), tokenizer=Letters())
    one = engine.generate("abc").tokens
    same = (["abc"], ("abc",), [[0, 1, 2]], [torch.tensor([0, 1, 2])], [(0, 1, 2)])
    for prompts in same:
        (result,) = engine.generate(prompts)
        assert result.tokens == one
    shared = engine.generate(["abc", [3, 4]], SamplingParams(max_new_tokens=5))
    assert [len(result.tokens) for result in shared] == [5, 5]
    assert list(engine.events_batch([])) == [] and engine.last_batch is not None
    assert engine.last_batch.results == []


BAD = [
    (["ab", "m"], {}, ValueError, r"prompts\[1\]: prompt had token id 12"),
    (["ab", ""], {}, ValueError, r"prompts\[1\]: prompt was empty"),
    (["ab", 3], {}, TypeError, r"prompts\[1\]: prompt was int"),
    ([[1], [1.5]], {}, TypeError, r"prompts\[1\]: prompt contained 1.5"),
    (["ab", "bc"], {"params": [SamplingParams()]}, ValueError, "params had 1 entries for 2"),
    (["ab"], {"params": [3]}, TypeError, r"prompts\[0\]: params was int"),
    (["ab"], {"params": 3}, TypeError, r"prompts\[0\]: params was int"),
    (["ab"], {"max_batch": 0}, ValueError, "max_batch was 0; it must be at least 1"),
    (["ab"], {"max_batch": 1.5}, TypeError, "max_batch was 1.5"),
    (["ab"], {"timeline": object()}, ValueError, "timeline was given; for a batch"),
    (["ab", [0] * 5000], {}, ValueError, r"prompts\[1\]: max_new_tokens was 128"),
]


@pytest.mark.parametrize(("prompts", "more", "error", "message"), BAD)
def test_bad_input(prompts: Any, more: dict[str, Any], error: type, message: str) -> None:
    engine = Engine(*_pair(), tokenizer=Letters())
    with pytest.raises(error, match=message):
        engine.generate(prompts, **more)
    assert len(engine.generate(["ab", "bc"])) == 2


def test_what_goes_one_by_one(llamas: Path) -> None:
    with pytest.raises(ValueError, match="policy was 'auto'"):
        Engine(*_pair(), policy="auto").generate([[1], [2]])
    engine = Engine(*llama_pair(llamas), policy="sps", rounds="device")
    with pytest.raises(ValueError, match="rounds was 'device'; for a batch it must be 'host'"):
        engine.generate([[1], [2]])


# ---------------------------------------------------------------------------- ends before the end
class Failing(TableModel):
    """Goes wrong for a text that begins with 9, 9, some tokens later."""

    is_healed = False

    def __init__(
        self, logits: torch.Tensor, error: Callable[[], BaseException] | None = None
    ) -> None:
        super().__init__(logits)
        self.error = error

    def new_state(self, max_seq_len: int, tree_slots: int) -> FailingState:
        return FailingState(self, max_seq_len, tree_slots)


class FailingState(TableState):
    def forward(self, *args: Any, **kwargs: Any) -> ForwardOutput:
        output = super().forward(*args, **kwargs)
        model: Any = self._model
        if self._prefix[:2] != [9, 9] or self.length < 12 or model.is_healed:
            return output
        if model.error is not None:
            raise model.error()  # a new one each time: its traceback keeps all states alive
        return output._replace(logits=torch.full_like(output.logits, float("nan")))


FAILURES = {
    "target NaN": ("target", None, ValueError, r"^prompts\[2\]: target or draft gave NaN"),
    "draft NaN": ("draft", None, ValueError, r"^prompts\[2\]: .*draft gave NaN logits"),
    # An error of a forward that is shared is that of all who share it.
    "target": ("target", OSError, RuntimeError, r"^prompts\[\d\], .*prompts\[2\].*OSError"),
    "draft": (
        "draft",
        lambda: TypeError("gone"),
        TypeError,
        r"^prompts\[\d\], .*prompts\[2\].*: gone",
    ),
    "interrupt": ("draft", KeyboardInterrupt, KeyboardInterrupt, None),
    "target interrupt": ("target", KeyboardInterrupt, KeyboardInterrupt, None),
}


@pytest.mark.parametrize(
    ("failure", "policy"),
    [
        (failure, policy)
        for failure, (side, *_) in FAILURES.items()
        for policy in BATCHED
        if side == "target" or POLICIES[policy](None).needs_draft
    ],
)
def test_an_error_ends_the_call_and_nothing_else(failure: str, policy: str) -> None:
    side, raised, error, message = FAILURES[failure]
    pair = dict(zip(("target", "draft"), _pair(), strict=True))
    failing: Any = Failing(pair[side].table, raised)
    pair[side] = failing
    engine = Engine(**pair, policy=policy)
    prompts = [[1, 2], [3, 3], [9, 9, 1], [4, 5]]
    with pytest.raises(error, match=message):
        engine.generate(prompts, SamplingParams(max_new_tokens=30))
    assert engine.last_batch is not None and not engine._active
    assert [result.finish_reason for result in engine.last_batch.results].count("cancelled") > 1
    failing.is_healed = True
    check_equal(engine, prompts, [SamplingParams(max_new_tokens=30)] * 4)


@pytest.mark.parametrize("policy", ["sps", "specbranch", "fanout"])
def test_closing_cancels_all(policy: str) -> None:
    engine = Engine(*_pair(), policy=policy, tokenizer=Letters())
    threads = threading.active_count()
    events = engine.events_batch(prompts_of(VOCAB), params_of(0.9), max_batch=2)
    had: list[tuple[int, list[int]]] = []
    for index, event in events:
        had.append((index, event.tokens))
        if index == 1:
            break
    events.close()
    assert engine.last_batch is not None and not engine._active
    results = engine.last_batch.results
    assert [result.finish_reason for result in results] == ["length"] + ["cancelled"] * 6
    assert results[-1].tokens == [] and results[-1].text == ""
    wanted = engine.generate(prompts_of(VOCAB)[1], params_of(0.9)[1]).tokens
    assert 0 < len(results[1].tokens) < 40 and results[1].tokens == wanted[: len(results[1].tokens)]
    assert threading.active_count() <= threads + 1  # the engine's own draft lane


def test_cancel_ends_all_after_their_round() -> None:
    engine = Engine(*_pair())
    params = SamplingParams(max_new_tokens=2000)
    found: list[int] = []
    for index, _ in engine.events_batch([[1, 1], [2, 2], [3, 3], [4, 4]], params, max_batch=2):
        found.append(index)
        if len(found) == 4:
            engine.cancel()
    assert set(found) == {0, 1} and len(found) <= 6
    assert engine.last_batch is not None
    reasons = [result.finish_reason for result in engine.last_batch.results]
    assert reasons == ["cancelled"] * 4


def test_two_batches_and_a_stream_at_a_time(llamas: Path) -> None:
    """Interleaved on one engine, from two threads: rounds never mix."""
    engine = Engine(*llama_pair(llamas))
    params = params_of(0.8)
    wanted = [engine.generate(*each).tokens for each in zip(prompts_of(256), params, strict=True)]
    found: dict[str, list[list[int]]] = {}

    def work(name: str) -> None:
        found[name] = [result.tokens for result in engine.generate(prompts_of(256), params)]

    workers = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for worker in workers:
        worker.start()
    alone = engine.generate(prompts_of(256)[4], params[4]).tokens
    for worker in workers:
        worker.join()
    assert found == {"a": wanted, "b": wanted} and alone == wanted[4]
