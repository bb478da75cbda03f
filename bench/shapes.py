"""Sizes to inflate a checkpoint to, and where its heads go in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from specbranch.models.config import LlamaConfig


@dataclass(frozen=True)
class Shape:
    """Sizes of the model to become; ``heads / kv_heads`` query heads share keys and values."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int

    def in_config(self) -> dict[str, int]:
        """The same by the names that a ``LlamaConfig`` has for them."""
        return {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_layers": self.layers,
            "num_heads": self.heads,
            "num_kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
        }


SHAPES = {
    "tiny": Shape(288, 9, 8, 8, 64, 1040, 1100),  # for dry runs
    "68m": Shape(768, 2, 12, 12, 64, 3072, 32000),  # JackFram/llama-68m
    "1b": Shape(2048, 22, 32, 4, 64, 5632, 32000),  # TinyLlama-1.1B
    "7b": Shape(4096, 32, 32, 32, 128, 11008, 32000),  # Llama-2-7B
    "13b": Shape(5120, 40, 40, 40, 128, 13824, 32000),  # Llama-2-13B
}


def named_shape(name: str) -> Shape:
    """The shape of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in SHAPES:
        raise ValueError(f"shape was {name!r}; it must be one of {', '.join(SHAPES)}")
    return SHAPES[name]


def check_fits(small: LlamaConfig, shape: Shape) -> None:
    """Refuse a source that the shape cannot hold.

    Raises:
        ValueError: naming the size, what it was and what it must be.
    """
    if small.family != "llama" or small.qkv_bias or small.o_bias or small.mlp_bias:
        raise ValueError(f"source was {small.family}; it must be a llama without biases")
    least = {
        "hidden": small.hidden_size + 1,
        "layers": small.num_layers,
        "kv_heads": small.num_kv_heads * _repeats(small, shape),
        "inner": small.intermediate_size,
        "vocab": small.vocab_size,
    }
    for name, bound in least.items():
        if getattr(shape, name) < bound:
            raise ValueError(
                f"shape had {name} {getattr(shape, name)}; for this source it must be "
                f"at least {bound}"
            )
    if shape.head_dim % small.head_dim:
        raise ValueError(
            f"shape had head_dim {shape.head_dim}; it must be a multiple of the source's "
            f"{small.head_dim}"
        )


def tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a checkpoint's tensors, in its order."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (shape.hidden,),
        "self_attn.q_proj": (queries, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "self_attn.o_proj": (shape.hidden, queries),
        "post_attention_layernorm": (shape.hidden,),
        "mlp.gate_proj": (shape.inner, shape.hidden),
        "mlp.up_proj": (shape.inner, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.inner),
    }
    yield "model.embed_tokens.weight", (shape.vocab, shape.hidden)
    for idx in range(shape.layers):
        for name, sizes in layer.items():
            yield f"model.layers.{idx}.{name}.weight", sizes
    yield "model.norm.weight", (shape.hidden,)
    yield "lm_head.weight", (shape.vocab, shape.hidden)


class HeadMap:
    """Where the old heads and their dimensions go; indices into rows of the projections."""

    def __init__(self, small: LlamaConfig, shape: Shape) -> None:
        old, new = small.head_dim, shape.head_dim
        group, room = small.num_heads // small.num_kv_heads, shape.heads // shape.kv_heads
        self.repeats = _repeats(small, shape)
        num_live = small.num_kv_heads * self.repeats
        self.num_live_rows = num_live * new
        # Query head h is number h % group of its group; `room` of a group share a repeated head.
        heads = torch.arange(small.num_heads)
        within = heads % group
        queries = (heads // group * self.repeats + within // room) * room + within % room
        pairs = torch.arange(old // 2) * (new // old)
        turned, plain = torch.cat([pairs, new // 2 + pairs]), torch.arange(old)
        live = torch.arange(num_live)
        self.query_rows = _indices(queries, turned, new)
        self.key_rows = _indices(live, turned, new)
        self.value_rows = _indices(live, plain, new)
        self.out_columns = _indices(queries, plain, new)
        # Where there is room for more query heads than the old ones, they read old values too.
        self.live_columns = _indices(torch.arange(num_live * room), plain, new)


def _indices(heads: torch.Tensor, dims: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows ``[heads * dims]`` of the given dimensions of the given heads."""
    return (heads.view(-1, 1) * head_dim + dims).flatten()


def _repeats(small: LlamaConfig, shape: Shape) -> int:
    """New key-value heads for each old one."""
    group, room = small.num_heads // small.num_kv_heads, shape.heads // shape.kv_heads
    return -(-group // room)
