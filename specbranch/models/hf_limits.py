"""Which transformers models can be served, and up to which length: by what their configs say.

A slot cache holds keys and values of single tokens, and a tree mask says who sees whom. A model
whose layers know more than that of the past, or that measures distances in slots, is refused; one
that is like any other up to a length (sliding windows) is served up to it.
"""

from __future__ import annotations

from typing import Any

ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
OTHER_LAYERS = {"dense", "sparse", "moe", "mlp"}  # kinds of a layer's MLP
SLOT_MASKS = {"gpt_neo"}  # a mask of their own besides the one they are given
ALIBI_MODELS = {"bloom", "mpt"}
# Names with "window" in them that are no window.
NO_WINDOWS = {"max_window_layers", "sliding_window_pattern", "_sliding_window_pattern"}
CHUNKS = {"attention_chunk_size", "local_attention"}
LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
# Scalings whose frequencies depend on how long the sequence has become.
ROPE_BY_LENGTH = {"dynamic", "longrope"}


def text_config(config: Any) -> Any:
    """The part of a config that describes the decoder."""
    return config.get_text_config(decoder=True)


def why_not(config: Any, stateful: bool = False) -> str | None:
    """What keeps a model from being served, as an error says it; None: nothing that is known.

    Args:
        config: a transformers config.
        stateful: what the model's class says of itself.
    """
    text = text_config(config)
    if config.is_encoder_decoder:
        return "it is an encoder-decoder model; it must be a decoder alone"
    if getattr(text, "add_cross_attention", False):
        return "it has cross-attention; only self-attention can be served"
    kinds = set(getattr(text, "layer_types", None) or ()) - ATTENTION_LAYERS - OTHER_LAYERS
    if kinds:
        return (
            f"it has layers of {', '.join(sorted(kinds))}; only attention over all tokens can fork"
        )
    if stateful:
        return "its layers have a recurrent state, which cannot be forked or rolled back"
    if _has_alibi(text):
        return "it has ALiBi, whose distances are between slots; in a tree slots are no positions"
    if getattr(text, "attn_temperature_tuning", False):
        return "its attention is scaled by slot (attn_temperature_tuning), not by position"
    if text.model_type in SLOT_MASKS:
        return f"{text.model_type} masks by slot, not by position"
    if getattr(text, "index_topk", None) is not None:
        return "its attention chooses keys by an index of its own (index_topk)"
    if getattr(config, "quantization_config", None):
        return "quantization_config is not supported; use a plain checkpoint"
    return None


def _has_alibi(text: Any) -> bool:
    inner = getattr(text, "attn_config", None)
    return (
        text.model_type in ALIBI_MODELS
        or bool(getattr(text, "alibi", False))
        or bool(getattr(inner, "alibi", False))
    )


def usable_length(config: Any) -> tuple[int | None, str]:
    """Most tokens for which the model is plain attention over all of them, and what sets that.

    None: the config does not say how long a sequence may be.
    """
    text = text_config(config)
    found = {f"{name} {value}": value for name, value in _limits(text).items()}
    if not found:
        return None, "nothing"
    reason = min(found, key=lambda name: found[name])
    return found[reason], reason


def _limits(text: Any) -> dict[str, int]:
    limits = {}
    for name in LENGTH_FIELDS:
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            limits[name] = value
            break
    return limits | _windows(text) | _rope_limits(text)


def _windows(text: Any) -> dict[str, int]:
    """Sliding windows and chunks: up to their size every token sees all before it."""
    fields = text.to_dict()
    windows = {
        name: min(sizes)
        for name, value in fields.items()
        if ("window" in name or name in CHUNKS)
        and name not in NO_WINDOWS
        and (sizes := _sizes(value))
    }
    kinds = set(fields.get("layer_types") or ())
    slides = not kinds or bool(kinds & {"sliding_attention", "chunked_attention"})
    if not slides or fields.get("use_sliding_window") is False:
        windows.pop("sliding_window", None)
        windows.pop("attention_chunk_size", None)
    return windows


def _sizes(value: Any) -> list[int]:
    """The positive integers that a field is, or lists."""
    listed = value if isinstance(value, list | tuple) else [value]
    return [size for size in listed if type(size) is int and size > 0]


def _rope_limits(text: Any) -> dict[str, int]:
    """Lengths beyond which positions are treated in another way."""
    limits = {}
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    # One set of parameters, or one for each kind of layer.
    sets = [part for part in (rope, *rope.values()) if isinstance(part, dict)]
    for part in sets:
        kind = part.get("rope_type") or part.get("type")
        original = part.get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", None
        )
        by_length = kind in ROPE_BY_LENGTH or "llama_4_scaling_beta" in part
        if by_length and original is not None:
            limits["original_max_position_embeddings"] = int(original)
    return limits
