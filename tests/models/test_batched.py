"""A forward of several sequences: each row bit for bit what it is in a forward of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import save_checkpoint

from specbranch import SamplingParams, load_model
from specbranch.drafting import DraftBuffers, DraftRequest, Sampler
from specbranch.models import LlamaModel
from specbranch.models.batched import forward_batch
from specbranch.models.padded import PaddedModel
from specbranch.models.state import TreeState
from specbranch.testing.table_model import TableModel

MAX_LEN, NODES = 400, 80


@dataclass(frozen=True)
class Row:
    """A sequence: its prefix, a first forward's nodes, and the nodes of the shared one."""

    prefix: int
    before: int
    count: int
    parents: Callable[[int, int], list[int]] | None  # of nodes so many, from so many on


def fan(first: int, count: int) -> list[int]:
    """A tree that is no chain: node i is a child of node i // 2."""
    return [(first + idx) // 2 - 1 for idx in range(count)]


ROWS = {
    "one": [Row(7, 0, 1, None)],
    "chains": [Row(5, 0, 4, None), Row(90, 2, 1, None), Row(1, 0, 9, None)],
    "trees": [Row(30, 0, 5, fan), Row(3, 3, 6, fan), Row(64, 0, 2, None)],
    # 45 nodes are visible in two words; 5 rows of several tokens are more than a block of 12.
    "words": [Row(20, 40, 5, fan), Row(9, 0, 40, fan), Row(300, 0, 1, None)],
    "many": [Row(10 * idx + 1, idx % 2, 1 + idx % 5, None) for idx in range(9)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("t"), hidden_size=64, num_layers=3, seed=0)


def ids_of(seed: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count,), generator=generator)


def open_state(model: LlamaModel, row: Row, seed: int) -> TreeState:
    state = model.new_state(MAX_LEN, NODES)
    state.prefill(ids_of(seed, row.prefix))
    if row.before:
        state.forward(ids_of(seed + 1, row.before), row.parents and row.parents(0, row.before))
    return state


def grown(
    model: LlamaModel, rows: Sequence[Row], hidden_layers: int, *, together: bool
) -> list[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]:
    """Logits, hidden states and cache of each row."""
    states = [open_state(model, row, 10 * idx) for idx, row in enumerate(rows)]
    tokens = [ids_of(10 * idx + 2, row.count) for idx, row in enumerate(rows)]
    parents = [row.parents and row.parents(row.before, row.count) for row in rows]
    if together:
        found = model.forward_batch(states, tokens, parents, hidden_layers=hidden_layers)
    else:
        found = [
            state.forward(ids, above, hidden_layers=hidden_layers)
            for state, ids, above in zip(states, tokens, parents, strict=True)
        ]
    for state, row in zip(states, rows, strict=True):
        assert state.num_nodes == row.before + row.count
    return [
        (out.logits.clone(), out.hidden, state.cache.data)
        for out, state in zip(found, states, strict=True)
    ]


@pytest.mark.parametrize("hidden_layers", [0, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_a_row_is_what_it_is_alone(
    folder: Path, rows: list[Row], dtype: str, hidden_layers: int
) -> None:
    model = load_model(folder, dtype=dtype)
    alone = grown(model, rows, hidden_layers, together=False)
    both = grown(model, rows, hidden_layers, together=True)
    for (logits, hidden, cache), (ours, ours_hidden, ours_cache) in zip(alone, both, strict=True):
        assert torch.equal(logits, ours) and torch.equal(cache, ours_cache)
        assert (hidden is None) == (ours_hidden is None)
        assert hidden is None or torch.equal(hidden, ours_hidden)


@pytest.mark.parametrize("rows", [ROWS["one"], ROWS["trees"]], ids=["one", "trees"])
def test_the_trunk_of_other_devices(folder: Path, rows: list[Row]) -> None:
    """Torch's products may sum in another order for another number of rows."""
    model = load_model(folder, backend="simt")
    assert model.drafter is None, "this is the path of plain weights"
    alone = grown(model, rows, 2, together=False)
    both = grown(model, rows, 2, together=True)
    for one, other in zip(alone, both, strict=True):
        for tensor, ours in zip(one, other, strict=True):
            torch.testing.assert_close(tensor, ours, rtol=2e-4, atol=2e-4)


def test_crossed_caches_are_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power: a forward that gives one row the other's cache fails the test above."""
    model = load_model(folder)
    alone = grown(model, ROWS["chains"], 0, together=False)
    drafter = model.drafter
    assert drafter is not None
    right = drafter.forward_batch

    def crossed(sequences: list, *args: object, **kwargs: object) -> None:
        first, second, *rest = sequences
        caches = second.cache, first.cache
        swapped = [first._replace(cache=caches[0]), second._replace(cache=caches[1])]
        right([*swapped, *rest], *args, **kwargs)

    monkeypatch.setattr(drafter, "forward_batch", crossed)
    both = grown(model, ROWS["chains"], 0, together=True)
    same = [torch.equal(one[0], other[0]) for one, other in zip(alone, both, strict=True)]
    assert same == [False, False, True]


def test_wrappers_and_models_without(folder: Path) -> None:
    """A padded draft shares its model's forwards; a table answers one after the other."""
    padded = PaddedModel(load_model(folder), 260)
    table = TableModel.random(8, seed=1)
    for model, vocab in ((padded, 260), (table, 8)):
        outputs = []
        for together in (True, False):
            states = [model.new_state(50, 8) for _ in range(3)]
            tokens = [ids_of(idx, 2 + idx) % vocab for idx in range(3)]
            for idx, state in enumerate(states):
                state.prefill(ids_of(9, 4 + idx) % 8)
            if together:
                found = forward_batch(model, states, tokens, [None] * 3)
            else:
                found = [state.forward(each) for state, each in zip(states, tokens, strict=True)]
            assert [state.num_nodes for state in states] == [2, 3, 4]
            outputs.append([out.logits.clone() for out in found])
        for one, other in zip(*outputs, strict=True):
            assert one.shape[1] == vocab and torch.equal(one, other)


BAD = {
    "id": (
        lambda states, tokens: (states[:2], [tokens[0], torch.tensor([3, 256])]),
        "ids 3 .. 256",
    ),
    "room": (lambda states, tokens: (states[:2], [tokens[0], ids_of(0, 9)]), "9 nodes after 0"),
    "empty": (lambda states, tokens: (states[:2], [tokens[0], tokens[0][:0]]), "tokens was empty"),
    "twice": (lambda states, tokens: ([states[0]] * 2, tokens), "same state twice"),
    "other": (lambda states, tokens: ([states[0], states[2]], tokens), "of another model"),
}


@pytest.mark.parametrize("plain", [False, True], ids=["native", "plain"])
@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_a_forward_that_fails_changes_no_tree(
    folder: Path, change: Callable, message: str, plain: bool
) -> None:
    model = load_model(folder, backend="simt" if plain else None)
    stranger = TableModel.random(8, seed=1).new_state(50, 8)
    states = [model.new_state(50, 8), model.new_state(50, 8), stranger]
    for state in states[:2]:
        state.prefill(ids_of(0, 5))
    given, tokens = change(states, [ids_of(1, 2), ids_of(2, 3)])
    with pytest.raises(ValueError, match=message):
        forward_batch(model, given, tokens, [None, None])
    assert [state.num_nodes for state in states[:2]] == [0, 0]
    forward_batch(model, states[:2], [ids_of(1, 2), ids_of(2, 3)], [None, None])
    assert [state.num_nodes for state in states[:2]] == [2, 3]


# ---------------------------------------------------------------------------- drafting
def _request(
    model: LlamaModel, seed: int, branches: int, steps: int, **more: float
) -> DraftRequest:
    state = model.new_state(MAX_LEN, NODES)
    state.prefill(ids_of(seed, 3 + 20 * seed))
    params = SamplingParams(seed=seed, temperature=more.get("temperature", 0.0), top_k=20 * seed)
    draw = "gumbel" if seed % 2 else "inverse_cdf"
    tokens = ids_of(seed + 50, branches or 1 + seed).tolist()
    out = DraftBuffers(8, 4, model.vocab_size, model.dtype)
    stop = more.get("stop_below", 0.0)
    return DraftRequest(state, tokens, branches, steps, Sampler(params, draw, 4), 40, stop, out)


def _requests(model: LlamaModel) -> list[DraftRequest]:
    return [
        _request(model, 0, 0, 6),
        _request(model, 1, 3, 4, temperature=0.8),
        _request(model, 2, 0, 0),
        _request(model, 3, 4, 8, temperature=1.2, stop_below=0.3),
        _request(model, 4, 1, 2, temperature=0.5),
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_drafting_together_is_drafting_alone(folder: Path, dtype: str) -> None:
    model = load_model(folder, dtype=dtype)
    alone, both = _requests(model), _requests(model)
    taken = [each.state.draft_steps(each) for each in alone]
    assert model.draft_batch(both) == taken
    assert taken[:3] == [6, 4, 0] and 1 <= taken[3] < 8, "one of them must stop early"
    for one, other, steps in zip(alone, both, taken, strict=True):
        width = max(one.branches, 1)
        for name in ("tokens", "confidence", "logits"):
            parts = [getattr(each.out, name)[:steps, :width] for each in (one, other)]
            assert torch.equal(*parts), name
        assert one.state.length == other.state.length
        assert one.state.num_nodes == other.state.num_nodes
        assert torch.equal(one.state.cache.data, other.state.cache.data)


def test_drafting_together_refuses(folder: Path) -> None:
    model = load_model(folder)
    requests = _requests(model)
    with pytest.raises(ValueError, match=r"sequences\[1\]: had the same cache as sequences\[0\]"):
        model.draft_batch([requests[0], requests[0]])
    stranger = TableModel.random(8, seed=1).new_state(50, 8)
    with pytest.raises(ValueError, match="of another model"):
        model.draft_batch([requests[0], requests[1]._replace(state=stranger)])
