"""Where transformers meets our slots: its cache interface, and its registry of attentions.

Imports transformers; ``hf.py`` imports this when a model is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .. import ops

# Arguments of an attention layer that change its result in a way that our op has no word for.
FOREIGN = ("softcap", "s_aux", "position_bias")
SMALL_WORK = 1 << 22  # multiply-adds, about a millisecond of one core


@dataclass(frozen=True)
class LayerShape:
    """What a layer keeps of a token."""

    kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True)
class Placement:
    """Where N new tokens go and, for our attention, what they see (see ``ops.tree_attention``)."""

    start: int  # slot of the first; the others are right behind it
    count: int
    prefix: torch.Tensor | None = None  # [1] int32; None: a dense mask says it
    bits: torch.Tensor | None = None  # [1, N, W] int32
    backend: ops.Backend | None = None


@dataclass(frozen=True)
class Seen:
    """Travels from the cache to the attention of the same layer, on the keys."""

    layer: torch.Tensor  # [2, 1, Hkv, S, D]
    placement: Placement


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a slot cache, ``[2, 1, Hkv, S, D]``, for one forward."""

    is_sliding = False
    is_compileable = False

    def __init__(self, data: torch.Tensor, shape: LayerShape, placement: Placement) -> None:
        super().__init__()
        self.is_initialized = True
        self._data, self._placement = data, placement
        end = placement.start + placement.count
        self.keys = data[0, :, : shape.kv_heads, :end, : shape.key_dim]
        self.values = data[1, :, : shape.kv_heads, :end, : shape.value_dim]
        if placement.prefix is not None:
            self.keys.seen = Seen(data, placement)  # type: ignore[attr-defined]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new keys and values ``[1, Hkv, N, D]``; all up to the last new slot."""
        start = self._placement.start
        self.keys[:, :, start:].copy_(key_states)
        self.values[:, :, start:].copy_(value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Slots before the new ones."""
        return self._placement.start

    def get_mask_sizes(self, *args: Any) -> tuple[int, int]:
        """Keys that ``update`` returns, and the index of the first."""
        return self._placement.start + self._placement.count, 0

    def get_max_length(self) -> int:
        """All slots."""
        return int(self._data.shape[-2])

    def get_max_cache_shape(self) -> int:
        """The older name of ``get_max_length``."""
        return self.get_max_length()

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the slots are there."""


def slot_layers(data: torch.Tensor, shapes: Sequence[LayerShape], placement: Placement) -> Any:
    """A transformers ``Cache`` over ``data [L, 2, 1, Hkv, S, D]`` for one forward."""
    layers = zip(data, shapes, strict=True)
    return Cache(layers=[SlotLayer(layer, shape, placement) for layer, shape in layers])


def tree_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """``ops.tree_attention`` as transformers calls it: ``[1, Hq, N, D]`` to ``[1, N, Hq, D]``.

    Keys that come from elsewhere (the model is used without us) get transformers' own attention.

    Raises:
        ValueError: the layer asks for something that our op cannot do.
    """
    seen: Seen | None = getattr(key, "seen", None)
    if seen is None:
        done: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return done
    for name in FOREIGN:
        if kwargs.get(name) is not None:
            raise ValueError(f"the attention has {name}, which tree_attention cannot do")
    where = seen.placement
    with _few_threads(query.numel() * (where.start + where.count)):
        out = ops.tree_attention(
            query.transpose(1, 2).contiguous(),
            seen.layer,
            where.prefix,
            where.bits,
            scale=scaling,
            backend=where.backend,
        )
    return out, None


def _few_threads(work: int) -> AbstractContextManager[None]:
    """One thread for a call that takes less than waking others; ``work`` multiply-adds.

    Around it torch computes with threads of its own, and two sets of threads that wait for work by
    spinning are in each other's way.
    """
    return ops.limit_threads(1) if work < SMALL_WORK else nullcontext()


def register(name: str) -> None:
    """Make our attention known to transformers; the mask serves uses of the model without us."""
    ALL_ATTENTION_FUNCTIONS.register(name, tree_attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, sdpa_mask)
