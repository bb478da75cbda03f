"""A prompt of 8,192 tokens, read in chunks: the logits behind it, and speculation on top of it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from models.checkpoints import build

from specbranch import Engine, SamplingParams, layer_skip, load_model
from specbranch.models import LlamaModel
from specbranch.models.state import PREFILL_CHUNK

LENGTH = 8192
BEHIND = 6
SIZES = {"num_hidden_layers": 2, "num_key_value_heads": 2, "max_position_embeddings": 16384}
TOKENS = random.Random(0).choices(range(128), k=LENGTH + BEHIND)
NEW = 24
TOLERANCE = 1e-4  # in logits of up to 4, two libraries that sum in different orders


@pytest.fixture(scope="module")
def theirs() -> Any:
    return build("llama2", **SIZES)


@pytest.fixture(scope="module")
def ours(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    folder = tmp_path_factory.mktemp("long")
    theirs.save_pretrained(folder)
    return load_model(folder)


@pytest.fixture(scope="module")
def expected(theirs: Any) -> torch.Tensor:
    """Logits of the last rows, of one plain forward over everything."""
    with torch.no_grad():
        out = theirs(torch.tensor([TOKENS]), use_cache=False, logits_to_keep=BEHIND)
    rows: torch.Tensor = out.logits[0]
    return rows


def behind(model: LlamaModel, tokens: list[int], pieces: int = 1) -> torch.Tensor:
    """Logits of the last ``BEHIND`` tokens, what is before them read in ``pieces``."""
    state = model.new_state(len(tokens), BEHIND)
    for piece in torch.tensor(tokens[:-BEHIND]).tensor_split(pieces):
        state.prefill(piece)
    return state.forward(torch.tensor(tokens[-BEHIND:])).logits.clone()


@pytest.mark.parametrize("pieces", [1, 3])
def test_logits(ours: LlamaModel, expected: torch.Tensor, pieces: int) -> None:
    assert LENGTH > 30 * PREFILL_CHUNK
    found = behind(ours, TOKENS, pieces)
    assert (found - expected).abs().max() < TOLERANCE


def test_a_chunk_in_another_ones_place_would_be_seen(
    ours: LlamaModel, expected: torch.Tensor
) -> None:
    wrong = list(TOKENS)
    wrong[5 * PREFILL_CHUNK : 6 * PREFILL_CHUNK] = wrong[4 * PREFILL_CHUNK : 5 * PREFILL_CHUNK]
    assert (behind(ours, wrong) - expected).abs().max() > 10 * TOLERANCE


def test_greedy_output(theirs: Any, ours: LlamaModel) -> None:
    """Of ``ar``, of speculation with the first layer as the draft, and of transformers."""
    prompt, params = TOKENS[:LENGTH], SamplingParams(max_new_tokens=NEW, ignore_eos=True)
    plain = Engine(ours, policy="ar").generate(prompt, params).tokens
    guessed = Engine(ours, layer_skip(ours, 1), policy="sps", gamma=4).generate(prompt, params)
    assert guessed.tokens == plain
    assert guessed.stats.drafted > 0 and guessed.stats.rejections > 0
    out = theirs.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, LENGTH, dtype=torch.int64),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert out[0, LENGTH:].tolist() == plain
