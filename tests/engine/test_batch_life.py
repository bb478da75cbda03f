"""Batches over their lifetime: nothing outlives them, and any thread may drive them."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Generator
from typing import Any

import pytest
from engine.test_batch import BATCHED, Failing, Letters, _pair, outcome, params_of, prompts_of
from engine.test_engine import VOCAB

from specbranch import Engine, SamplingParams
from specbranch.batching import Batch
from specbranch.lanes import SerialLanes, ThreadLanes
from specbranch.testing.table_model import TableState

PROMPTS = [[1, 2], [3, 3], [9, 9, 1], [4, 5]]
PARAMS = SamplingParams(max_new_tokens=30)


def in_a_thread(work: Callable[[], Any]) -> int | None:
    """Run it in a thread of its own, to the end; returns the thread's number."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return thread.ident


# ---------------------------------------------------------------------------- what is kept
def to_the_end(engine: Engine) -> None:
    engine.generate(PROMPTS, PARAMS, max_batch=2)


def begun(engine: Engine) -> Generator[Any, None, None]:
    events = engine.events_batch(PROMPTS, PARAMS, max_batch=3)
    next(events)
    return events


def closed(engine: Engine) -> None:
    begun(engine).close()


def abandoned(engine: Engine) -> None:
    begun(engine)


def closed_in_another_thread(engine: Engine) -> None:
    in_a_thread(begun(engine).close)


def begun_in_another_thread(engine: Engine) -> None:
    made: list[Any] = []
    in_a_thread(lambda: made.append(begun(engine)))
    made[0].close()


def failed(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"prompts\[2\]: .*NaN"):
        engine.generate(PROMPTS, PARAMS)


WAYS = (
    to_the_end, closed, abandoned, closed_in_another_thread, begun_in_another_thread, failed,
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])
@pytest.mark.parametrize("policy", ["ar", "specbranch"])
def test_a_batch_leaves_no_state_behind(policy: str, way: Callable[[Engine], None]) -> None:
    """A state has a request's caches: what keeps one keeps megabytes or gigabytes."""
    target, draft = _pair()
    failing = Failing(target.table)
    failing.is_healed = way is not failed
    engine = Engine(failing, draft, policy=policy)
    way(engine)
    gc.collect()
    assert not [each for each in gc.get_objects() if issubclass(type(each), TableState)]
    assert not [each for each in gc.get_objects() if type(each) is Batch]


# ---------------------------------------------------------------------------- threads
@pytest.mark.parametrize("policy", BATCHED)
def test_every_round_may_run_in_another_thread(policy: str) -> None:
    """Threads that have ended hand their numbers on; greenlets stay where they were made."""
    engine = Engine(*_pair(), policy=policy)
    prompts, params = prompts_of(VOCAB), params_of(0.8)
    alone = [outcome(engine.generate(*each)) for each in zip(prompts, params, strict=True)]
    events = engine.events_batch(prompts, params, max_batch=3)
    numbers = []
    while engine.last_batch is None:
        numbers.append(in_a_thread(lambda: next(events, None)))
    assert len(set(numbers)) < len(numbers), "or this tests nothing"
    assert list(map(outcome, engine.last_batch.results)) == alone


@pytest.mark.parametrize(
    ("policy", "given", "expected"),
    [
        ("sps", {"threads": 2}, (2, None)),
        ("sps", {"lanes": SerialLanes(1), "threads": 2}, (2, None)),
        ("pearl", {"threads": 2}, (2, 2)),
        ("pearl", {"lanes": ThreadLanes(4)}, (4, 3)),
        ("pearl", {"lanes": SerialLanes(1), "threads": 2}, (1, None)),
    ],
)
def test_a_batch_takes_the_cores_that_a_request_takes(
    policy: str, given: dict[str, Any], expected: tuple[int, int | None]
) -> None:
    hub = Engine(*_pair(), policy=policy, **given)._new_hub()
    assert (hub._threads, hub._target_threads or None) == expected


# ---------------------------------------------------------------------------- ends and errors
def test_cancelled_requests_have_the_text_of_their_tokens() -> None:
    """Also what was held back, since it might have begun a stop string."""
    engine = Engine(*_pair(), tokenizer=Letters())
    params = SamplingParams(max_new_tokens=2000, stop=tuple(f"{each}!" for each in "abcdefghijkl"))
    texts = [""] * 3
    for index, event in engine.events_batch(["ab", "bc", "cd"], params):
        texts[index] += event.text
        engine.cancel()
    assert engine.last_batch is not None
    results = engine.last_batch.results
    assert [result.finish_reason for result in results] == ["cancelled"] * 3
    assert [result.text for result in results] == texts
    assert texts == ["".join("abcdefghijkl"[at] for at in result.tokens) for result in results]
    assert all(texts)


class Mute(Letters):
    """Cannot write one of its tokens."""

    def push(self, token: int) -> str:
        if token == 7:
            raise KeyError("token 7")
        return super().push(token)


def test_an_error_of_a_tokenizer_is_named() -> None:
    engine = Engine(*_pair(), tokenizer=Mute())
    with pytest.raises(RuntimeError, match=r"^prompts\[\d\]: KeyError: 'token 7'"):
        engine.generate(["ab", "bc"], SamplingParams(max_new_tokens=500, temperature=1.0))


@pytest.mark.parametrize(
    ("prompts", "kind"), [("abc", "str"), (b"abc", "bytes"), ({"a": 1}, "dict"), (iter(["a"]), "")]
)
def test_what_is_no_list_of_prompts(prompts: Any, kind: str) -> None:
    """The letters of a text least of all."""
    engine = Engine(*_pair(), tokenizer=Letters())
    with pytest.raises(TypeError, match=f"prompts was {kind}.*; it must be a list of prompts"):
        engine.events_batch(prompts)
