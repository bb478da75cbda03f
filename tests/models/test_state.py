"""A state refuses what does not fit and stays as it was; branches cost no copy of the prefix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import save
from torch.profiler import ProfilerActivity, profile

from specbranch import load_model
from specbranch.models.llama import LlamaModel, LlamaState

PROMPT = torch.arange(40)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    folder = save(tmp_path_factory.mktemp("model"), "llama3", max_position_embeddings=2048)
    return load_model(folder)


@pytest.fixture
def state(model: LlamaModel) -> LlamaState:
    """A prefix of 40 of at most 48 tokens, two pending nodes of at most 8."""
    state = model.new_state(48, 8)
    state.prefill(PROMPT)
    state.forward(torch.tensor([1, 2]), [-1, -1])
    return state


BAD_CALLS: list[tuple[Callable[[LlamaState], Any], type[Exception], str]] = [
    (lambda s: s.forward(torch.tensor([128])), ValueError, r"ids 128 \.\. 128; .* 0 \.\. 127"),
    (lambda s: s.forward(torch.tensor([-1, 5])), ValueError, r"ids -1 \.\. 5; .* 0 \.\. 127"),
    (lambda s: s.forward(torch.arange(7)), ValueError, r"tokens had 7 nodes after 2; .* most 8"),
    (lambda s: s.forward(torch.tensor([], dtype=torch.int64)), ValueError, "tokens was empty"),
    (lambda s: s.forward(torch.tensor([[1]])), ValueError, r"tokens was torch.int64 \[1, 1\]"),
    (lambda s: s.forward(torch.tensor([1.0])), ValueError, r"tokens was torch.float32"),
    (lambda s: s.forward([1]), TypeError, "tokens was list; it must be a torch tensor"),
    (lambda s: s.forward(torch.tensor([1]), [2]), ValueError, r"parents of node 2 was 2"),
    (lambda s: s.forward(torch.tensor([1]), [0, 0]), ValueError, r"parents had 2 entries"),
    (lambda s: s.forward(torch.tensor([1]), [0.5]), TypeError, r"parents was \[0.5\]"),
    (lambda s: s.forward(torch.tensor([1]), hidden_layers=4), ValueError, "hidden_layers was 4"),
    (lambda s: s.forward(torch.tensor([1]), hidden_layers=-1), ValueError, "hidden_layers was -1"),
    (lambda s: s.commit([0, 1]), ValueError, r"path was \[0, 1\]"),
    (lambda s: s.commit([2]), ValueError, r"path was \[2\]"),
    (lambda s: s.rollback(41), ValueError, r"length was 41; it must be in 0 \.\. 40"),
    (lambda s: s.rollback(-1), ValueError, r"length was -1"),
    (lambda s: s.prefill(torch.tensor([1])), ValueError, "prefill with 2 pending nodes"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS, ids=range(len(BAD_CALLS)))
def test_a_refused_call_changes_nothing(
    state: LlamaState, call: Callable[[LlamaState], Any], error: type[Exception], message: str
) -> None:
    prefix = state.cache.data[..., :42, :].clone()
    with pytest.raises(error, match=message):
        call(state)
    assert (state.length, state.num_nodes, state.tree.parents) == (40, 2, [-1, -1])
    assert torch.equal(state.cache.data[..., :42, :], prefix)


@pytest.mark.parametrize("bad", [-1, 128])
def test_prefill_checks_all_ids_first(model: LlamaModel, bad: int) -> None:
    state = model.new_state(600, 4)
    tokens = torch.zeros(600, dtype=torch.int64)
    tokens[590] = bad  # in the last chunk
    with pytest.raises(ValueError, match=r"they must be in 0 \.\. 127"):
        state.prefill(tokens)
    assert state.length == 0


def test_prompt_longer_than_the_cache(model: LlamaModel) -> None:
    state = model.new_state(48, 4)
    state.prefill(PROMPT)
    with pytest.raises(ValueError, match=r"tokens had 9 entries after a prefix of 40; .* most 48"):
        state.prefill(torch.zeros(9, dtype=torch.int64))
    state.prefill(torch.zeros(8, dtype=torch.int64))
    state.forward(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"path had 1 nodes after a prefix of 48; .* most 48"):
        state.commit([0])
    assert (state.length, state.num_nodes) == (48, 1)


def test_an_empty_prompt_is_no_work(model: LlamaModel) -> None:
    state = model.new_state(48, 4)
    state.prefill(torch.tensor([], dtype=torch.int64))
    assert state.length == 0
    assert state.forward(torch.tensor([7])).logits.shape == (1, 128)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((0, 4), "max_seq_len was 0"), ((2049, 4), "max_seq_len was 2049"), ((9, -1), "tree_slots")],
)
def test_new_state(model: LlamaModel, sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.new_state(*sizes)


def test_no_position_beyond_the_tables(tmp_path: Path) -> None:
    state = load_model(save(tmp_path, max_position_embeddings=42)).new_state(42, 8)
    state.prefill(PROMPT)
    state.forward(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="would reach position 42; positions must be below 42"):
        state.forward(torch.tensor([3]))
    state.forward(torch.tensor([3]), [-1])
    assert state.num_nodes == 3


def allocated_by_branches(model: LlamaModel, prompt_length: int) -> tuple[int, int]:
    """(bytes torch allocates, allocations) of two steps of four branches and keeping one."""
    state = model.new_state(1100, 16)
    state.prefill(torch.arange(prompt_length) % 128)

    def round_of_branches() -> None:
        state.forward(torch.tensor([1, 2, 3, 4]), [-1, -1, -1, -1])
        state.forward(torch.tensor([5, 6, 7, 8]), [0, 1, 2, 3])
        state.commit([2, 6])

    round_of_branches()  # makes the buffers that are kept
    state.rollback(prompt_length)
    cache, place = state.cache.nbytes, state.cache.data.data_ptr()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        round_of_branches()
    assert (state.cache.nbytes, state.cache.data.data_ptr()) == (cache, place)
    sizes = [
        event.cpu_memory_usage
        for event in measured.events()
        if event.name.startswith("aten::empty") and event.cpu_memory_usage > 0
    ]
    return sum(sizes), len(sizes)


def test_branches_allocate_nothing_that_grows_with_the_prompt(model: LlamaModel) -> None:
    short, long = (allocated_by_branches(model, length) for length in (64, 1024))
    assert short[0] > 0, "the profiler saw nothing"
    assert short == long


def test_a_copy_of_the_prefix_would_be_seen(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = LlamaState.forward

    def copying(self: LlamaState, *args: Any, **options: Any) -> Any:
        self.cache.data[..., : self.length, :].clone()
        return forward(self, *args, **options)

    monkeypatch.setattr(LlamaState, "forward", copying)
    short, long = (allocated_by_branches(model, length) for length in (64, 1024))
    assert long[0] > 4 * short[0]
