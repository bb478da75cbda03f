"""Drafting in one native call: the bits of one step at a time, and the same state afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_checkpoint import save_checkpoint

from specbranch import SamplingParams, load_model
from specbranch.drafting import DraftBuffers, DraftRequest, Sampler, _one_by_one, draft_steps
from specbranch.models.llama import LlamaModel, LlamaState

STEPS, ROWS = 5, 4
WAYS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    folder = tmp_path_factory.mktemp("model")
    loaded = load_model(save_checkpoint(folder, hidden_size=64, num_layers=2, seed=3))
    assert isinstance(loaded, LlamaModel)
    return loaded


def prefilled(model: LlamaModel, seed: int) -> LlamaState:
    state = model.new_state(64, STEPS * ROWS)
    generator = torch.Generator().manual_seed(seed)
    state.prefill(torch.randint(model.vocab_size, (17,), generator=generator))
    return state


def poisoned(model: LlamaModel) -> DraftBuffers:
    buffers = DraftBuffers(STEPS, ROWS, model.vocab_size, model.dtype)
    for tensor in (buffers.logits, buffers.cutoff, buffers.confidence):
        tensor.fill_(float("nan"))
    buffers.tokens.fill_(-77)
    return buffers


@pytest.mark.parametrize("tokens", [[5], [5, 9, 200]])
@pytest.mark.parametrize("branches", [0, 1, 3])
@pytest.mark.parametrize("draw", ["inverse_cdf", "gumbel"])
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("stop_below", [0.0, 0.05, 1.1])
def test_native_equals_one_by_one(
    model: LlamaModel, tokens: list[int], branches: int, draw: str, way: dict, stop_below: float
) -> None:
    if branches > 0:
        tokens = [5, 9, 200][:branches]
    sampler = Sampler(SamplingParams(seed=11, **way), draw, ROWS)
    results = []
    for function in (draft_steps, _one_by_one):
        state, out = prefilled(model, seed=1), poisoned(model)
        taken = function(state, tokens, branches, STEPS, sampler, 40, stop_below, out)
        after = state.forward(torch.tensor([7]), [state.num_nodes - 1]).logits
        results.append((taken, out, state, after))
    (taken, out, state, after), (other_taken, other, other_state, other_after) = results
    assert taken == other_taken
    assert taken == 1 if stop_below > 1 else taken >= 1
    for name in ("logits", "tokens", "confidence", "cutoff"):
        mine, theirs = getattr(out, name), getattr(other, name)
        assert torch.equal(torch.nan_to_num(mine), torch.nan_to_num(theirs)), name
    assert state.length == other_state.length
    assert state.tree.parents == other_state.tree.parents
    assert torch.equal(after, other_after)


def test_the_model_drafts_natively(model: LlamaModel) -> None:
    assert hasattr(prefilled(model, 0), "draft_steps")


def test_nan_is_reported_with_its_position(model: LlamaModel) -> None:
    state, out = prefilled(model, 0), poisoned(model)
    state.cache.data.fill_(float("nan"))
    sampler = Sampler(SamplingParams(), "inverse_cdf", ROWS)
    with pytest.raises(ValueError, match="draft gave NaN logits for position 40"):
        draft_steps(state, [5], 0, STEPS, sampler, 40, 0.0, out)


BAD = [
    ({"tokens": [256]}, r"tokens had 256 at \[0\], must be in 0..255"),
    ({"tokens": [-1]}, r"tokens had -1 at \[0\]"),
    ({"tokens": []}, r"tokens had 0 entries for 1 branches"),
    ({"tokens": [1, 2], "branches": 3}, r"tokens had 2 entries for 3 branches"),
    ({"steps": STEPS + 1}, r"out logits had no room for 6 steps of 1"),
    ({"tokens": [1] * 5, "branches": 5}, r"out logits had no room for 5 steps of 5"),
    ({"tokens": [1] * 70}, r"tokens would reach slot"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input(model: LlamaModel, change: dict, message: str) -> None:
    given = {"tokens": [5], "branches": 0, "steps": STEPS} | change
    state, out = prefilled(model, 0), poisoned(model)
    sampler = Sampler(SamplingParams(), "inverse_cdf", 5)
    rest: Any = {"sampler": sampler, "position": 40, "stop_below": 0.0, "out": out}
    with pytest.raises(ValueError, match=message):
        state.draft_steps(DraftRequest(state, **given, **rest))
    assert state.length == 17 and state.num_nodes == 0
    with pytest.raises(ValueError, match="draft with 1 pending nodes"):
        state.forward(torch.tensor([1]))
        state.draft_steps(DraftRequest(state, [5], 0, 1, **rest))
