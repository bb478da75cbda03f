"""Protocol errors leave a state as it was; forking a branch allocates nothing for the prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import build, save
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specbranch import load_model
from specbranch.models import HFModel
from specbranch.models import state as state_module
from specbranch.models.llama import LlamaModel, LlamaState

CAPACITY = 40


@pytest.fixture(scope="module", params=["native", "transformers"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> LlamaModel | HFModel:
    sizes = {"num_hidden_layers": 2, "max_position_embeddings": 2048}
    if request.param == "transformers":
        return HFModel(build("llama2", **sizes))
    return load_model(save(tmp_path_factory.mktemp("model"), **sizes))


@pytest.fixture
def state(model: LlamaModel) -> LlamaState:
    """A prefix of 30 and a tree of 4 nodes in 8."""
    state = model.new_state(CAPACITY, 8)
    state.prefill(torch.arange(30))
    state.forward(torch.tensor([1, 2, 3, 4]), [-1, 0, 0, 2])
    return state


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values)


ERRORS: dict[str, tuple[Callable[[LlamaState], Any], str]] = {
    "too many nodes": (lambda s: s.forward(ids(*range(5))), "at most 8"),
    "parent after child": (lambda s: s.forward(ids(5), [4]), "parents of node 4 was 4"),
    "parent below -1": (lambda s: s.forward(ids(5), [-2]), "parents of node 4 was -2"),
    "parents too few": (lambda s: s.forward(ids(5, 6), [0]), "parents had 1"),
    "no token": (lambda s: s.forward(torch.empty(0, dtype=torch.int64)), "tokens was empty"),
    "token too large": (lambda s: s.forward(ids(5, 128)), r"ids 5 \.\. 128"),
    "token negative": (lambda s: s.forward(ids(-1, 5)), r"ids -1 \.\. 5"),
    "tokens of two dimensions": (lambda s: s.forward(ids(1).view(1, 1)), r"\[1, 1\]"),
    "float tokens": (lambda s: s.forward(torch.zeros(2)), "float32"),
    "too many hidden layers": (lambda s: s.forward(ids(5), hidden_layers=3), r"0 \.\. 2"),
    "path not from the root": (lambda s: s.commit([2, 3]), "path was"),
    "path of siblings": (lambda s: s.commit([0, 1, 2]), "path was"),
    "path to nowhere": (lambda s: s.commit([0, 1, 4]), "path was"),
    "rollback too long": (lambda s: s.rollback(31), r"0 \.\. 30"),
    "rollback negative": (lambda s: s.rollback(-1), r"0 \.\. 30"),
    "prefill with pending nodes": (lambda s: s.prefill(ids(1)), "4 pending nodes"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_changes_nothing(state: LlamaState, name: str) -> None:
    call, message = ERRORS[name]
    parents = list(state.tree.parents)
    kept = state.cache.data[..., :34, :].clone()
    with pytest.raises(ValueError, match=message):
        call(state)
    assert (state.length, state.num_nodes, state.tree.parents) == (30, 4, parents)
    assert torch.equal(state.cache.data[..., :34, :], kept)
    state.commit([0, 2])
    after = state.forward(ids(9)).logits.clone()
    fresh = state.model.new_state(CAPACITY, 8)
    fresh.prefill(torch.tensor([*range(30), 1, 3]))
    torch.testing.assert_close(after, fresh.forward(ids(9)).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([*range(11)], "together they must be at most 40"), ([1, 2, 3, 4, 5, 128], "ids 1 .. 128")],
)
def test_a_refused_prefill_changes_nothing(
    model: LlamaModel, tokens: list[int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the wrong token is not in the first chunk."""
    monkeypatch.setattr(state_module, "PREFILL_CHUNK", 4)
    state = model.new_state(CAPACITY, 8)
    state.prefill(torch.arange(30))
    with pytest.raises(ValueError, match=message):
        state.prefill(torch.tensor(tokens))
    assert (state.length, state.num_nodes) == (30, 0)


def test_an_empty_prefill(model: LlamaModel) -> None:
    state = model.new_state(CAPACITY, 8)
    state.prefill(torch.empty(0, dtype=torch.int64))
    assert state.length == 0


def test_a_commit_beyond_the_capacity(model: LlamaModel) -> None:
    state = model.new_state(31, 8)
    state.prefill(torch.arange(30))
    state.forward(ids(1, 2))
    with pytest.raises(ValueError, match="at most 31"):
        state.commit([0, 1])
    assert (state.length, state.num_nodes) == (30, 2)
    state.commit([0])
    assert state.length == 31


@pytest.mark.parametrize("length", [0, -1, 2049])
def test_a_state_beyond_the_model(model: LlamaModel, length: int) -> None:
    with pytest.raises(ValueError, match="2048"):
        model.new_state(length, 8)


def test_positions_end_where_the_model_ends(tmp_path: Path) -> None:
    model = load_model(save(tmp_path, num_hidden_layers=1, max_position_embeddings=16))
    state = model.new_state(16, 8)
    state.prefill(torch.arange(15))
    state.forward(ids(1, 2), [-1, -1])
    with pytest.raises(ValueError, match="position 16"):
        state.forward(ids(3), [1])
    assert state.num_nodes == 2


# ---------------------------------------------------------------------------- memory
class AllocatedBytes(TorchDispatchMode):
    """Bytes of all new storage that torch operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {id_of(leaf) for leaf in tree_leaves((args, kwargs)) if is_tensor(leaf)}
        for leaf in tree_leaves(out):
            if is_tensor(leaf) and id_of(leaf) not in known:
                self.total += leaf.untyped_storage().nbytes()
        return out


def is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def id_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


Fork = Callable[[LlamaState], None]


def fork_nothing(state: LlamaState) -> None:
    """What SpecBranch does."""


def fork_by_copy(state: LlamaState) -> None:
    """A deliberate mistake: the branch gets the prefix's keys and values for itself."""
    state.cache.data[..., : state.length, :].clone()


def branch_bytes(model: LlamaModel, prompt: int, fork: Fork, branches: int = 4) -> int:
    """Bytes allocated by forking ``branches`` and growing each by 5 tokens."""
    state = model.new_state(1100, 64)
    state.prefill(torch.arange(prompt) % model.vocab_size)
    address, size = state.cache.data.data_ptr(), state.cache.nbytes
    tokens, first = torch.arange(branches), [-1] * branches
    with AllocatedBytes() as allocated:
        for step in range(5):
            if step == 0:
                for _ in range(branches):
                    fork(state)
            parents = first if step == 0 else range(state.num_nodes - branches, state.num_nodes)
            state.forward(tokens, list(parents))
            assert (state.cache.data.data_ptr(), state.cache.nbytes) == (address, size)
        pending = state.num_nodes
        state.commit([1, 1 + branches, 1 + 2 * branches])
    assert pending == 5 * branches
    assert (state.cache.data.data_ptr(), state.cache.nbytes) == (address, size)
    return allocated.total


def test_forking_allocates_nothing_that_grows_with_the_prompt(model: LlamaModel) -> None:
    short, long = (branch_bytes(model, prompt, fork_nothing) for prompt in (64, 1024))
    assert short > 0, "the count sees nothing"
    assert short == long


def test_a_fork_that_copies_is_seen(model: LlamaModel) -> None:
    short, long = (branch_bytes(model, prompt, fork_by_copy) for prompt in (64, 1024))
    a_token = 2 * 2 * 48 * 4
    assert long - short == 4 * (1024 - 64) * a_token
