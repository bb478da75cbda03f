"""A draft without a draft model: the first layers of the target, and its head."""

from __future__ import annotations

from dataclasses import replace

from .llama import LlamaModel


def layer_skip(target: LlamaModel, num_layers: int) -> LlamaModel:
    """The model that stops after the target's first layers; all weights are the target's own.

    Nothing is copied but the rotary tables; only the cache of its states is its own. A target that
    was not trained for it predicts poorly from its middle layers: such a draft is badly aligned.

    Args:
        target: a loaded model.
        num_layers: how many layers are kept, the first ones.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Zhang et al., "Draft & Verify" (2023), https://arxiv.org/abs/2309.08168; Elhoushi et al.,
    "LayerSkip" (2024), https://arxiv.org/abs/2404.16710.
    """
    if not isinstance(target, LlamaModel):
        raise TypeError(f"target was {type(target).__name__}; it must be a LlamaModel")
    whole = target.config.num_layers
    if isinstance(num_layers, bool) or not isinstance(num_layers, int):
        raise TypeError(f"num_layers was {num_layers!r}; it must be an integer")
    if not 1 <= num_layers <= whole:
        raise ValueError(f"num_layers was {num_layers}; it must be in 1 .. {whole}")
    return LlamaModel(
        replace(target.config, num_layers=num_layers),
        target.embedding,
        target.layers[:num_layers],
        target.final_norm,
        target.head,
        target.backend,
    )
