"""Tiny GGUF files of random models, written with the gguf package as llama.cpp's converter does."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType

# Widths that whole blocks of 32 fill.
SIZES = {"hidden_size": 64, "intermediate_size": 96}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
KINDS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
Tensors = dict[str, tuple[np.ndarray, GGMLQuantizationType]]


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """q or k as files of architecture llama have them: a head's two halves take turns."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def file_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def tensors_of(model: transformers.PreTrainedModel, stored: str) -> Tensors:
    """Matrices in the type ``stored``, vectors in F32, named and permuted as in a file."""
    config, found = model.config, {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = weight.float().numpy()
        if config.model_type in ("llama", "mistral"):
            if "q_proj" in name:
                values = permuted(values, config.num_attention_heads)
            if "k_proj" in name:
                values = permuted(values, config.num_key_value_heads)
        kind = GGMLQuantizationType[stored if values.ndim > 1 else "F32"]
        found[file_name(name)] = (values, kind)
    rope = config.rope_parameters
    if rope["rope_type"] == "llama3":
        dim = config.head_dim or config.hidden_size // config.num_attention_heads
        found["rope_freqs.weight"] = (llama3_factors(rope, dim), GGMLQuantizationType.F32)
    return found


def llama3_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """By what the frequencies are divided: long waves by ``factor``, short ones by 1."""
    longest, low, high = (
        rope[name]
        for name in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    factors = []
    for idx in range(head_dim // 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (2 * idx / head_dim)
        if wave > longest / low:
            factors.append(rope["factor"])
        elif wave < longest / high:
            factors.append(1.0)
        else:
            ramp = (longest / wave - low) / (high - low)
            factors.append(1.0 / ((1.0 - ramp) / rope["factor"] + ramp))
    return np.array(factors, dtype=np.float32)


def fields_of(model: transformers.PreTrainedModel) -> dict[str, Any]:
    """Metadata, with the name of the architecture in front."""
    config = model.config
    kind, rope = KINDS[config.model_type], config.rope_parameters
    fields = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    head_dim = getattr(config, "head_dim", None)
    if head_dim and head_dim * config.num_attention_heads != config.hidden_size:
        fields |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if rope["rope_type"] == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    return {f"{kind}.{key}": value for key, value in fields.items()}


def write(
    path: Path,
    model: transformers.PreTrainedModel,
    stored: str = "F32",
    *,
    fields: dict[str, Any] | None = None,
    change: Callable[[Tensors], object] | None = None,
    architecture: str | None = None,
) -> Path:
    """Write ``model`` to ``path``; ``fields`` are put over its own, None leaves one out."""
    writer = gguf.GGUFWriter(path, architecture or KINDS[model.config.model_type])
    for key, value in (fields_of(model) | (fields or {})).items():
        if value is not None:
            _add(writer, key, value)
    tensors = tensors_of(model, stored)
    if change is not None:
        change(tensors)
    for name, (values, kind) in tensors.items():
        if kind == GGMLQuantizationType.I32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    adders[type(value)](key, value)


@torch.no_grad()
def round_as_stored(model: transformers.PreTrainedModel, stored: str) -> None:
    """Give the model's matrices the values that they have after storing; blocks lie in a row."""
    kind = GGMLQuantizationType[stored]
    for weight in model.parameters():
        if weight.dim() > 1:
            kept = gguf.quants.quantize(weight.numpy(), kind)
            weight.copy_(torch.from_numpy(gguf.quants.dequantize(kept, kind).copy()))
