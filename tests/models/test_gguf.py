"""GGUF files give the model that the same weights give as safetensors, and transformers'."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from models.checkpoints import FAMILIES, build, reference
from models.gguf_files import SIZES, Tensors, round_as_stored, write

from specbranch import load_model
from specbranch.models import gguf, load_config

F32 = GGMLQuantizationType.F32
TOLERANCE = 1e-4
BIASES = {"attention_bias": True, "mlp_bias": True}
SMOLLM = {"hidden_size": 96, "num_attention_heads": 6}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(("llama2", stored, {}) for stored in ("F32", "F16", "BF16", "Q8_0", "Q4_1", "Q4_0")),
    *((family, "F32", {}) for family in FAMILIES if family not in ("llama2", "smollm")),
    ("smollm", "Q4_1", SMOLLM),
    ("llama2", "F16", BIASES),
    ("qwen2", "Q8_0", {}),
    ("qwen3", "Q4_0", {}),
]
TOKENS = random.Random(0).choices(range(128), k=60)


def made(family: str, stored: str = "F32", **changes: Any) -> Any:
    """A random model whose weights are exact in the type ``stored``."""
    if family == "tinyllama":
        changes = {"num_attention_heads": 8, **changes}
    model = build(family, **{**SIZES, **changes})
    round_as_stored(model, stored)
    return model


def logits(model: Any) -> torch.Tensor:
    state = model.new_state(64, 64)
    state.prefill(torch.tensor(TOKENS[:20]))
    return state.forward(torch.tensor(TOKENS[20:])).logits.clone()


@pytest.mark.parametrize(("family", "stored", "changes"), CASES, ids=str)
def test_same_model(tmp_path: Path, family: str, stored: str, changes: dict[str, Any]) -> None:
    theirs = made(family, stored, **changes)
    theirs.save_pretrained(tmp_path / "safetensors")
    ours = load_model(write(tmp_path / "model.gguf", theirs, stored))
    plain = load_model(tmp_path / "safetensors")
    found = logits(ours)
    assert (found - reference(theirs, TOKENS)[20:]).abs().max() < TOLERANCE
    # The factors of a stretched rope were rounded to float32 once more.
    rounding = TOLERANCE if family == "llama3" else 0.0
    assert (found - logits(plain)).abs().max() <= rounding
    assert ours.config.tied == plain.config.tied == theirs.config.tie_word_embeddings
    assert ours.config.num_parameters == sum(each.numel() for each in theirs.parameters())


@pytest.mark.parametrize("family", ["llama2", "tinyllama", "mistral"])
def test_rows_left_as_llama_cpp_has_them_would_be_seen(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = made(family)
    monkeypatch.setattr(gguf, "unpermuted", lambda rows, heads: rows)
    found = logits(load_model(write(tmp_path / "model.gguf", theirs)))
    assert (found - reference(theirs, TOKENS)[20:]).abs().max() > 1000 * TOLERANCE


def test_rope_factors_left_out_would_be_seen(tmp_path: Path) -> None:
    theirs = made("llama3")
    path = write(tmp_path / "model.gguf", theirs, change=lambda all: all.pop("rope_freqs.weight"))
    difference = logits(load_model(path)) - reference(theirs, TOKENS)[20:]
    assert difference.abs().max() > 1000 * TOLERANCE


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_a_factor_alone_is_linear_scaling(tmp_path: Path, key: str) -> None:
    theirs = made("deepseek-coder")
    named = {"llama.rope.scaling.type": None, "llama.rope.scaling.factor": None}
    path = write(tmp_path / "model.gguf", theirs, fields={**named, f"llama.{key}": 4.0})
    assert (logits(load_model(path)) - reference(theirs, TOKENS)[20:]).abs().max() < TOLERANCE
    factors = (np.ones(8, np.float32), F32)
    write(path, theirs, change=lambda all: all.update({"rope_freqs.weight": factors}))
    refused(path, "rope_freqs.weight", "only one")


def test_a_matrix_of_more_rows_than_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "model.gguf", made("llama2", "Q8_0"), "Q8_0")
    whole = logits(load_model(path))
    monkeypatch.setattr(gguf, "BLOCK_ELEMENTS", 7 * 64)
    assert torch.equal(logits(load_model(path)), whole)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [("F32", torch.float32), ("F16", torch.float16), ("Q8_0", torch.bfloat16)],
)
def test_dtypes(tmp_path: Path, stored: str, expected: torch.dtype) -> None:
    path = write(tmp_path / "model.gguf", made("llama2"), stored)
    assert load_config(path).stored_dtype == expected
    assert load_model(path).dtype == torch.float32
    assert load_model(path, dtype="bfloat16").dtype == torch.bfloat16


def test_end_tokens(tmp_path: Path) -> None:
    ids = {"eos": 3, "eot": 5, "eom": 3, "bos": 1}
    fields = {f"tokenizer.ggml.{name}_token_id": token for name, token in ids.items()}
    path = write(tmp_path / "model.gguf", made("llama2"), fields=fields)
    assert load_model(path).eos_token_ids == (3, 5)
    assert load_config(write(path, made("llama2"))).eos_token_ids == ()


def test_a_directory_with_one_file(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", made("llama2"))
    assert torch.equal(logits(load_model(tmp_path)), logits(load_model(path)))
    (tmp_path / "other.GGUF").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"has 2 \.gguf files, model\.gguf is the first"):
        load_model(tmp_path)
    made("qwen2").save_pretrained(tmp_path)  # config.json comes first
    assert load_model(tmp_path).config.family == "qwen2"


# ---------------------------------------------------------------------------------- bad files
def refused(path: Path, *named: str) -> None:
    """Loading raises ValueError with one short line that holds each of ``named``."""
    with pytest.raises(ValueError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    for part in (str(path), *named):
        assert part in message


BAD_FIELDS: list[tuple[dict[str, Any], list[str]]] = [
    ({"llama.rope.scaling.type": "yarn"}, ["rope.scaling.type", "yarn", "linear"]),
    ({"llama.rope.scaling.type": "linear"}, ["rope.scaling.factor", "0", "positive"]),
    ({"llama.rope.scaling.factor": "4"}, ["rope.scaling.factor", "'4'", "number"]),
    ({"llama.rope.freq_base": "big"}, ["rope.freq_base", "big"]),
    ({"llama.block_count": None}, ["llama.block_count", "None"]),
    ({"llama.block_count": 0}, ["llama.block_count", "0"]),
    ({"llama.context_length": None}, ["llama.context_length", "None"]),
    ({"llama.embedding_length": None}, ["llama.embedding_length", "None"]),
    ({"llama.feed_forward_length": "96"}, ["llama.feed_forward_length", "'96'"]),
    ({"llama.attention.head_count": None}, ["llama.attention.head_count", "None"]),
    ({"llama.attention.head_count": [4, 4, 4]}, ["llama.attention.head_count", "[4, 4, 4]"]),
    ({"llama.attention.head_count_kv": 3}, ["head_count_kv 3", "4 heads"]),
    ({"llama.attention.layer_norm_rms_epsilon": None}, ["layer_norm_rms_epsilon", "None"]),
    ({"llama.attention.key_length": 15}, ["15", "even"]),
    ({"llama.attention.value_length": 8}, ["value_length", "8", "16"]),
    ({"llama.rope.dimension_count": 8}, ["rope.dimension_count", "8", "16"]),
    ({"llama.attention.sliding_window": 64}, ["sliding_window", "64", "256"]),
    ({"llama.expert_count": 8}, ["expert_count", "8"]),
    ({"llama.attention.scale": 0.5}, ["attention.scale", "0.5"]),
    ({"llama.vocab_size": 127}, ["token_embd.weight", "[128, 64]", "[127, 64]"]),
    ({"split.count": 2}, ["parts"]),
    ({"tokenizer.ggml.eos_token_id": "</s>"}, ["eos_token_id", "</s>"]),
]


@pytest.mark.parametrize(("fields", "named"), BAD_FIELDS, ids=lambda value: str(value)[:50])
def test_bad_field(tmp_path: Path, fields: dict[str, Any], named: list[str]) -> None:
    refused(write(tmp_path / "model.gguf", made("llama2"), fields=fields), *named)


@pytest.mark.parametrize("architecture", ["gpt2", "llama4", "qwen2moe"])
def test_unknown_architecture(tmp_path: Path, architecture: str) -> None:
    path = write(tmp_path / "model.gguf", made("llama2"), architecture=architecture)
    refused(path, "general.architecture", architecture, "llama, qwen2, qwen3")


INTEGERS = (np.zeros((64, 96), np.int32), GGMLQuantizationType.I32)
BAD_TENSORS: list[tuple[Callable[[Tensors], object], list[str]]] = [
    (
        lambda all: all.pop("blk.1.ffn_down.weight"),
        ["blk.1.ffn_down.weight", "missing", "[64, 96]"],
    ),
    (lambda all: all.pop("token_embd.weight"), ["token_embd.weight", "missing"]),
    (lambda all: all.pop("output_norm.weight"), ["output_norm.weight", "missing"]),
    (
        lambda all: all.update({"blk.0.attn_q.weight": (np.zeros((32, 64), np.float32), F32)}),
        ["blk.0.attn_q.weight", "[32, 64]", "[64, 64]"],
    ),
    (
        lambda all: all.update({"blk.0.ffn_gate_inp.weight": (np.zeros((8, 64), np.float32), F32)}),
        ["blk.0.ffn_gate_inp.weight", "not part of llama"],
    ),
    (
        lambda all: all.update({"rope_freqs.weight": (np.ones(7, np.float32), F32)}),
        ["rope_freqs.weight", "[7]", "[8]"],
    ),
    (
        lambda all: all.update({"blk.2.ffn_down.weight": INTEGERS}),
        ["blk.2.ffn_down.weight", "I32", "dequantised"],
    ),
]


@pytest.mark.parametrize(("change", "named"), BAD_TENSORS)
def test_bad_tensor(tmp_path: Path, change: Callable[[Tensors], object], named: list[str]) -> None:
    refused(write(tmp_path / "model.gguf", made("llama2"), change=change), *named)


@pytest.mark.parametrize("keep", [0, 3, 20, 300, 0.5, -1])
def test_truncated(tmp_path: Path, keep: float) -> None:
    path = write(tmp_path / "model.gguf", made("llama2"))
    data = path.read_bytes().rstrip(b"\0")  # what aligns the end may be missing
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refused(path, "not a whole GGUF file")


def test_another_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\3\4" + bytes(100))
    refused(path, "not a whole GGUF file")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "model.gguf", made("llama2"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match="pip install gguf"):
        load_model(path)
