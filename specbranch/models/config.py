"""What a Hugging Face ``config.json`` says, checked: what is not supported is refused by name."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


class NotNativeError(ValueError):
    """A config that is sound, of a model that the Llama family's code does not compute."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: base frequency and how it is stretched."""

    theta: float
    kind: str = "default"  # default, linear, llama3 or factors
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192
    factors: tuple[float, ...] = ()  # one a pair, for kind "factors"

    def frequencies(self, head_dim: int) -> torch.Tensor:
        """Angle per position of each pair, ``[head_dim / 2]`` float32."""
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        frequencies = 1.0 / (self.theta**exponents)
        if self.kind == "linear":
            return frequencies / self.factor
        if self.kind == "llama3":
            return self._llama3(frequencies)
        if self.kind == "factors":
            return frequencies / torch.tensor(self.factors, dtype=torch.float32)
        return frequencies

    def _llama3(self, frequencies: torch.Tensor) -> torch.Tensor:
        """Llama 3: long waves are stretched by ``factor``, short ones kept, a ramp between."""
        turns = self.original_max_position * frequencies / (2 * math.pi)
        ramp = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        ramp = ramp.clamp(0.0, 1.0)
        return (1.0 - ramp) * frequencies / self.factor + ramp * frequencies


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and switches of a model of the Llama family."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_seq_len: int
    norm_eps: float
    rope: RopeConfig
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    eos_token_ids: tuple[int, ...]
    stored_dtype: torch.dtype

    @property
    def _layer_matrices(self) -> list[tuple[int, int]]:
        """Outputs and inputs of qkv, out, gate and up, down."""
        hidden, inner, dim = self.hidden_size, self.intermediate_size, self.head_dim
        queries, joint = self.num_heads * dim, (self.num_heads + 2 * self.num_kv_heads) * dim
        return [(joint, hidden), (hidden, queries), (2 * inner, hidden), (hidden, inner)]

    @property
    def num_parameters(self) -> int:
        """Of the whole model; a tied head counts once."""
        hidden, inner = self.hidden_size, self.intermediate_size
        joint = self._layer_matrices[0][0]
        layer = 2 * hidden + sum(outputs * inputs for outputs, inputs in self._layer_matrices)
        layer += joint * self.qkv_bias + hidden * self.o_bias + 2 * self.head_dim * self.qk_norm
        layer += (2 * inner + hidden) * self.mlp_bias
        tables = (1 if self.tied else 2) * self.vocab_size * hidden
        return tables + self.num_layers * layer + hidden

    def int8_bytes(self) -> int:
        """In memory, with int8 matrices and float32 embedding, norms and biases (a CPU's dtype)."""
        hidden = self.hidden_size
        matrices = self._layer_matrices * self.num_layers + [(self.vocab_size, hidden)]
        whole = sum(outputs * inputs for outputs, inputs in matrices)
        scales = sum(outputs for outputs, _ in matrices)
        # A tied head is a matrix of its own, beside the embedding.
        others = self.num_parameters + self.tied * self.vocab_size * hidden - whole
        return whole + 4 * (scales + others)

    def cache_bytes(self, slots: int, dtype: torch.dtype) -> int:
        """Of a slot cache with room for ``slots`` tokens."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * slots * dtype.itemsize


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or an error that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} could not be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} held a {type(value).__name__}; it must hold an object")
    return value


def read_config(folder: Path) -> LlamaConfig:
    """Read and check ``config.json`` (and ``generation_config.json`` where there is one).

    Raises:
        FileNotFoundError, ValueError: naming the file or field, what it was, what it must be.
        NotNativeError: transformers may know the model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a Hugging Face checkpoint has one")
    raw = read_json(path)
    names = raw.get("architectures") or ["(none)"]
    if names[0] not in ARCHITECTURES:
        kind = NotNativeError if raw.get("architectures") else ValueError
        raise kind(
            f"{path}: architecture {names[0]} is not supported; "
            f"it must be one of {', '.join(ARCHITECTURES)}"
        )
    family = ARCHITECTURES[names[0]]
    _refuse(path, raw, family)
    heads = read_size(path, raw, "num_attention_heads")
    hidden = read_size(path, raw, "hidden_size")
    kv_heads = read_size(
        path, {"num_key_value_heads": heads, **_present(raw)}, "num_key_value_heads"
    )
    if heads % kv_heads:
        raise ValueError(f"{path}: num_key_value_heads {kv_heads} must divide {heads} heads")
    head_dim = read_size(path, {"head_dim": hidden // heads, **_present(raw)}, "head_dim")
    if head_dim % 2:
        raise ValueError(f"{path}: head_dim was {head_dim}; rotary embeddings need an even one")
    bias = bool(raw.get("attention_bias", False))
    return LlamaConfig(
        family=family,
        vocab_size=read_size(path, raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=read_size(path, raw, "intermediate_size"),
        num_layers=read_size(path, raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_seq_len=read_size(path, raw, "max_position_embeddings"),
        norm_eps=_norm_eps(path, raw),
        rope=_rope(path, raw),
        tied=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2" or bias,
        o_bias=family != "qwen2" and bias,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        eos_token_ids=_eos(folder, raw),
        stored_dtype=stored_dtype(raw),
    )


def _present(raw: dict[str, Any]) -> dict[str, Any]:
    """The fields that are not null."""
    return {key: value for key, value in raw.items() if value is not None}


def read_size(path: Path, raw: dict[str, Any], key: str) -> int:
    """A positive integer of ``raw``, or an error that names the file and the key."""
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{path}: {key} was {value!r}; it must be a positive integer")
    return value


def _norm_eps(path: Path, raw: dict[str, Any]) -> float:
    value = raw.get("rms_norm_eps", 1e-6)
    if not isinstance(value, int | float):
        raise ValueError(f"{path}: rms_norm_eps was {value!r}; it must be a number")
    return float(value)


def _refuse(path: Path, raw: dict[str, Any], family: str) -> None:
    """Whatever would silently give another model's output."""
    if raw.get("quantization_config"):
        raise ValueError(f"{path}: quantization_config is not supported; use a plain checkpoint")
    if raw.get("hidden_act", "silu") != "silu":
        raise NotNativeError(f"{path}: hidden_act was {raw['hidden_act']!r}; it must be 'silu'")
    if raw.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"{path}: partial_rotary_factor is not supported; it must be 1")
    if raw.get("pretraining_tp", 1) != 1:
        raise ValueError(f"{path}: pretraining_tp is not supported; it must be 1")
    # A Mistral config without the field means the default of transformers.
    window = raw.get("sliding_window", 4096 if family == "mistral" else None)
    slides = window is not None and raw.get("use_sliding_window", family == "mistral")
    longest = raw.get("max_position_embeddings", 0)
    if slides and window < longest:
        raise NotNativeError(
            f"{path}: sliding_window {window} is not supported; it must be null or at least "
            f"max_position_embeddings, {longest}"
        )
    if set(raw.get("layer_types") or ()) - {"full_attention", "sliding_attention"}:
        raise NotNativeError(
            f"{path}: layer_types was {raw['layer_types']}; all must be full_attention"
        )


def _rope(path: Path, raw: dict[str, Any]) -> RopeConfig:
    """Both spellings: ``rope_theta`` with ``rope_scaling``, and ``rope_parameters``."""
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise ValueError(f"{path}: rope_parameters was {scaling!r}; it must be an object")
    theta = scaling.get("rope_theta") or raw.get("rope_theta") or 10000.0
    if not isinstance(theta, int | float):
        raise ValueError(f"{path}: rope_theta was {theta!r}; it must be a number")
    if scaling.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"{path}: partial_rotary_factor is not supported; it must be 1")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise NotNativeError(
            f"{path}: rope type {kind!r} is not supported; default, linear, llama3 are"
        )
    if kind == "default":
        return RopeConfig(theta)
    try:
        factor = float(scaling["factor"])
        if kind == "linear":
            return RopeConfig(theta, kind, factor)
        return RopeConfig(
            theta,
            kind,
            factor,
            float(scaling["low_freq_factor"]),
            float(scaling["high_freq_factor"]),
            int(scaling["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise ValueError(f"{path}: rope type {kind!r} needs {error}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: rope type {kind!r} had {scaling}; numbers needed") from error


def _eos(folder: Path, raw: dict[str, Any]) -> tuple[int, ...]:
    found = raw.get("eos_token_id")
    generation = folder / "generation_config.json"
    if generation.is_file():
        found = read_json(generation).get("eos_token_id", found)
    if found is None:
        return ()
    listed = found if isinstance(found, list) else [found]
    if any(isinstance(token, bool) or not isinstance(token, int) for token in listed):
        raise ValueError(
            f"{folder / 'config.json'}: eos_token_id was {found!r}; it must be one or more integers"
        )
    return tuple(listed)


def stored_dtype(raw: dict[str, Any]) -> torch.dtype:
    """The dtype that a config names; float32 where it names none."""
    name = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
