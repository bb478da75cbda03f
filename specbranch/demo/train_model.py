"""The Llama architecture as a plain torch module, for training only (``models/llama.py`` runs it).

Parameter names are those of Hugging Face checkpoints, so that the state dict is the checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, named as in Hugging Face's config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    head_dim: int = 32
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate-half RoPE on ``[B, H, T, D]``."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Causal self-attention with grouped key-value heads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        queries = shape.num_attention_heads * shape.head_dim
        keys = shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, shape.hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, length, _ = hidden.shape

        def heads(values: torch.Tensor) -> torch.Tensor:
            return values.view(batch, length, -1, self.shape.head_dim).transpose(1, 2)

        query = rotate(heads(self.q_proj(hidden)), cos, sin)
        key = rotate(heads(self.k_proj(hidden)), cos, sin)
        group = self.shape.num_attention_heads // self.shape.num_key_value_heads
        key = key.repeat_interleave(group, dim=1)
        value = heads(self.v_proj(hidden)).repeat_interleave(group, dim=1)
        out = F.scaled_dot_product_attention(query, key.to(query.dtype), value, is_causal=True)
        joined: torch.Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
        return joined


class Mlp(nn.Module):
    """Gated SiLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return out


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.mlp = Mlp(shape)

    def forward(self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin)
        out: torch.Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class Llama(nn.Module):
    """Decoder with the embedding as its head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=shape.rms_norm_eps)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = (2 * shape.num_hidden_layers) ** -0.5 if last else 1.0
                nn.init.normal_(weight, std=0.02 * scale)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, T, V]`` of ``tokens [B, T]``."""
        half = self.shape.head_dim // 2
        inverse = self.shape.rope_theta ** (-torch.arange(half).float() / half)
        angles = torch.arange(tokens.shape[1]).float()[:, None] * inverse
        cos, sin = angles.cos(), angles.sin()
        hidden = self.embed_tokens(tokens)
        for layer in self.layers:
            hidden = layer(hidden, cos, sin)
        return F.linear(self.norm(hidden), self.embed_tokens.weight)

    @classmethod
    def load(cls, folder: Path) -> tuple[Llama, int]:
        """A model that ``save`` wrote, in float32, and the steps it was trained for."""
        config = json.loads((folder / "config.json").read_text())
        model = cls(Shape(**{field.name: config[field.name] for field in fields(Shape)}))
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            steps = int((file.metadata() or {}).get("steps", 0))
        state = {
            name.removeprefix("model."): tensor.float()
            for name, tensor in load_file(folder / "model.safetensors").items()
        }
        model.load_state_dict(state)
        return model, steps

    def save(self, folder: Path, eos_token_id: int, steps: int = 0) -> None:
        """Write config.json and model.safetensors (bfloat16) as Hugging Face does."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"model.{name}": value.detach().to(torch.bfloat16).contiguous()
            for name, value in self.state_dict().items()
        }
        metadata = {"format": "pt", "steps": str(steps)}
        save_file(tensors, folder / "model.safetensors", metadata=metadata)
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "bos_token_id": eos_token_id,
            "eos_token_id": eos_token_id,
            **asdict(self.shape),
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
