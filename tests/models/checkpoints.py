"""Small checkpoints of every supported family, written by transformers from random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

SIZES = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama2": {"kind": "Llama"},
    "llama3": {"kind": "Llama", "num_key_value_heads": 2, "rope_parameters": LLAMA3_ROPE},
    "deepseek-coder": {
        "kind": "Llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0},
    },
    "mistral": {
        "kind": "Mistral",
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": None,
    },
    "qwen2": {"kind": "Qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"kind": "Qwen3", "num_key_value_heads": 2, "head_dim": 32},
    "smollm": {
        "kind": "Llama",
        "hidden_size": 72,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "tinyllama": {"kind": "Llama", "num_attention_heads": 6, "num_key_value_heads": 1},
}


def build(family: str, **changes: Any) -> transformers.PreTrainedModel:
    """A random model in float32; no weight is left at a value that would hide a mistake."""
    fields = {**SIZES, **FAMILIES[family], **changes}
    kind = fields.pop("kind")
    config = getattr(transformers, f"{kind}Config")(**fields)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(std=0.5)
            else:
                weight.normal_(std=0.15)
    return model


def save(folder: Path, family: str = "llama2", **changes: Any) -> Path:
    """A checkpoint directory with a single safetensors file."""
    build(family, **changes).save_pretrained(folder)
    return folder


@torch.no_grad()
def reference(model: transformers.PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """Logits ``[n, V]`` of transformers on the whole sequence, without a cache."""
    return model(torch.tensor([tokens]), use_cache=False).logits[0]
