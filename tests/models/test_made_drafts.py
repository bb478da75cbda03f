"""Drafts that are made of the target: its first layers, its rounded weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import build, reference

from specbranch import Engine, SamplingParams, demo_pair, layer_skip, load_model
from specbranch.lanes import SerialLanes
from specbranch.models import LlamaModel
from specbranch.models.rounded import rounded

TOLERANCE = 1e-4
TOKENS = torch.arange(60) % 128


def logits(model: LlamaModel) -> torch.Tensor:
    return model.new_state(64, 64).forward(TOKENS).logits.clone()


@pytest.fixture(scope="module", params=["llama2", "qwen2", "qwen3"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    theirs = build(request.param)
    folder = tmp_path_factory.mktemp("target")
    theirs.save_pretrained(folder)
    return theirs, folder


@pytest.mark.parametrize("backend", [None, "simt"])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_first_layers(both: Any, num_layers: int, backend: Any) -> None:
    theirs, folder = both
    target = load_model(folder, backend=backend)
    draft = layer_skip(target, num_layers)
    layers = theirs.model.layers
    theirs.model.layers = layers[:num_layers]
    expected = reference(theirs, TOKENS.tolist())
    theirs.model.layers = layers
    assert (logits(draft) - expected).abs().max() < TOLERANCE
    assert draft.new_state(64, 64).cache.data.shape[0] == num_layers
    for name in ("qkv", "out", "gate_up", "down"):
        ours, shared = (getattr(each.layers[num_layers - 1], name) for each in (draft, target))
        assert ours.weight.data_ptr() == shared.weight.data_ptr()
    assert draft.head is target.head and draft.embedding is target.embedding
    assert (logits(target) - reference(theirs, TOKENS.tolist())).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("num_layers", "error"), [(0, ValueError), (4, ValueError), (1.0, TypeError), (True, TypeError)]
)
def test_layers_that_are_not_there(both: Any, num_layers: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"num_layers was {num_layers}"):
        layer_skip(load_model(both[1]), num_layers)
    with pytest.raises(TypeError, match="target was str"):
        layer_skip("model", 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", [None, "simt"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rounded(both: Any, bits: int, backend: Any, tmp_path: Path) -> None:
    theirs, folder = both
    most = 2 ** (bits - 1) - 1
    ours = rounded(load_model(folder, backend=backend), bits=bits)
    kept = {name: weight.clone() for name, weight in theirs.state_dict().items()}
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if name.endswith("proj.weight"):
                for row in weight:
                    scale = row.abs().max() / most
                    row.copy_((row / scale).round() * scale)
    expected = reference_with_rounded_head(theirs, most)
    theirs.load_state_dict(kept)
    assert (logits(ours) - expected).abs().max() < TOLERANCE


@torch.no_grad()
def reference_with_rounded_head(theirs: Any, most: int) -> torch.Tensor:
    """The head may be the embedding, which is not rounded."""
    hidden = theirs.model(TOKENS.unsqueeze(0), use_cache=False).last_hidden_state[0]
    head = theirs.lm_head.weight
    scale = head.abs().amax(1, keepdim=True) / most
    return hidden @ ((head / scale).round() * scale).T


def test_rounding_leaves_the_target_alone_and_errs_less_with_more_bits(both: Any) -> None:
    target = load_model(both[1])
    before = logits(target)
    errors = [float((logits(rounded(target, bits=bits)) - before).abs().mean()) for bits in (8, 5)]
    assert 0.0 < errors[0] < errors[1] / 4
    assert torch.equal(logits(target), before)


@pytest.mark.parametrize(
    ("bits", "error"), [(1, ValueError), (9, ValueError), (8.0, TypeError), (True, TypeError)]
)
def test_bits_that_cannot_be(both: Any, bits: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"bits was {bits}"):
        rounded(load_model(both[1]), bits=bits)


@pytest.mark.parametrize("policy", ["sps", "specbranch", "fanout"])
def test_output_is_the_target_s_and_the_rounded_draft_is_the_better(policy: str) -> None:
    target, _, tokenizer = demo_pair()
    params = SamplingParams(max_new_tokens=48, ignore_eos=True)
    prompt = tokenizer.encode("class Node:\n    def __init__(self")

    def run(draft: LlamaModel | None, policy: str) -> Any:
        return Engine(target, draft, policy=policy, lanes=SerialLanes(1)).generate(prompt, params)

    assert isinstance(target, LlamaModel)
    expected = run(None, "ar").tokens
    skipped, close = (run(each, policy) for each in (layer_skip(target, 2), rounded(target)))
    assert skipped.tokens == close.tokens == expected
    assert close.stats.acceptance_rate > 0.9 > skipped.stats.acceptance_rate
