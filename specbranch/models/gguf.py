"""GGUF files of the Llama family: metadata to a config, tensors to a checkpoint's names.

llama.cpp rotates neighbouring pairs of a head's rows, (0, 1), (2, 3), ..., where a checkpoint in
Hugging Face format pairs row i with row i + D/2. So its converter reorders the rows of q and k in
files of architecture llama (not of qwen2 and qwen3); here that is undone. Whatever would silently
give another model's output is refused.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .config import LlamaConfig, RopeConfig, read_size

if TYPE_CHECKING:
    from types import ModuleType

    from gguf import GGUFReader, ReaderTensor

SUFFIX = ".gguf"
FAMILIES = ("llama", "qwen2", "qwen3")
BLOCK_ELEMENTS = 1 << 20  # dequantised at once; the steps in between need several times the result

WHOLE_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"
# Keys behind the architecture's name that a plain model lacks, or has with this value.
PLAIN_VALUES = {
    "expert_count": 0,
    "attention.scale": 0.0,
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "logit_scale": 1.0,
    "use_parallel_residual": False,
}
STORED_DTYPES = {"F32": torch.float32, "F16": torch.float16}


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that ``path`` names: itself, or the one in a directory without config.json.

    Raises:
        ValueError: the directory has several.
    """
    if path.is_file():
        return path if path.suffix.lower() == SUFFIX else None
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    found = sorted(each for each in path.iterdir() if each.suffix.lower() == SUFFIX)
    if len(found) > 1:
        raise ValueError(
            f"{path} has {len(found)} {SUFFIX} files, {found[0].name} is the first; name one"
        )
    return found[0] if found else None


def _package() -> ModuleType:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading .gguf files needs the package gguf: pip install gguf"
        ) from error
    return gguf


def _open(path: Path) -> GGUFReader:
    package = _package()
    try:
        reader: GGUFReader = package.GGUFReader(path)
    except Exception as error:  # whatever the reader stumbles over first
        raise ValueError(
            f"{path} is not a whole GGUF file: {type(error).__name__}: {error}"
        ) from error
    if reader.byte_order != "I":
        raise ValueError(f"{path} has the byte order of another machine; convert it for this one")
    return reader


class GgufFile:
    """A GGUF file, its tensors under the names that a Hugging Face checkpoint would give them.

    Args:
        path: of the file.

    Raises:
        ModuleNotFoundError: the package ``gguf`` is not installed.
        ValueError: naming the file, the key, what it was and what it must be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = _open(path)
        self._tensors = {_checkpoint_name(each.name): each for each in self._reader.tensors}
        self._factors = self._tensors.pop(ROPE_FACTORS, None)
        self.family = self.value("general.architecture")
        if self.family not in FAMILIES:
            raise ValueError(
                f"{path}: general.architecture was {self.family!r}; "
                f"it must be one of {', '.join(FAMILIES)}"
            )
        if (self.value("split.count") or 1) != 1:
            raise ValueError(f"{path} is one of several parts; merge them into one file")
        self.config = self._read_config()

    # ------------------------------------------------------------------ metadata
    def value(self, key: str) -> Any:
        """What the metadata says of ``key``; None where it says nothing."""
        field = self._reader.get_field(key)
        return None if field is None else field.contents()

    def token_id(self, name: str) -> int | None:
        """The id of the special token ``name`` ("bos", "eos", ...), None where there is none."""
        key = f"tokenizer.ggml.{name}_token_id"
        found = self.value(key)
        if found is None or (isinstance(found, int) and not isinstance(found, bool)):
            return found
        raise ValueError(f"{self.path}: {key} was {found!r}; it must be an integer")

    def eos_token_ids(self) -> tuple[int, ...]:
        """Ends of a text, of a turn and of a message."""
        found = (self.token_id(name) for name in ("eos", "eot", "eom"))
        return tuple(dict.fromkeys(token for token in found if token is not None))

    def _number(self, key: str, default: float | None = None) -> float:
        found = self.value(f"{self.family}.{key}")
        found = default if found is None else found
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise ValueError(f"{self.path}: {self.family}.{key} was {found!r}; it must be a number")
        return float(found)

    def _size(self, key: str, default: int | None = None) -> int:
        name = f"{self.family}.{key}"
        found = self.value(name)
        return read_size(self.path, {name: default if found is None else found}, name)

    def _read_config(self) -> LlamaConfig:
        self._refuse()
        heads, hidden = self._size("attention.head_count"), self._size("embedding_length")
        head_dim = self._head_dim(hidden // heads)
        kv_heads = self._size("attention.head_count_kv", heads)
        if heads % kv_heads:
            raise ValueError(
                f"{self.path}: {self.family}.attention.head_count_kv {kv_heads} must divide "
                f"{heads} heads"
            )
        return LlamaConfig(
            family=self.family,
            vocab_size=self._size("vocab_size", self._rows("token_embd.weight")),
            hidden_size=hidden,
            intermediate_size=self._size("feed_forward_length"),
            num_layers=self._size("block_count"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            max_seq_len=self._size("context_length"),
            norm_eps=self._number("attention.layer_norm_rms_epsilon"),
            rope=self._rope(head_dim),
            tied="lm_head.weight" not in self._tensors,
            qkv_bias=self.family == "qwen2" or self._has("blk.0.attn_q.bias"),
            o_bias=self._has("blk.0.attn_output.bias"),
            mlp_bias=self._has("blk.0.ffn_gate.bias"),
            qk_norm=self.family == "qwen3",
            eos_token_ids=self.eos_token_ids(),
            stored_dtype=self._stored_dtype(),
        )

    def _refuse(self) -> None:
        """Whatever would silently give another model's output."""
        for key, plain in PLAIN_VALUES.items():
            found = self.value(f"{self.family}.{key}")
            if found is not None and found != plain:
                raise ValueError(
                    f"{self.path}: {self.family}.{key} was {found!r}; it must be {plain!r}"
                )
        window = self.value(f"{self.family}.attention.sliding_window")
        longest = self._size("context_length")
        if window and window < longest:
            raise ValueError(
                f"{self.path}: {self.family}.attention.sliding_window {window} is not supported; "
                f"it must be at least context_length, {longest}"
            )

    def _head_dim(self, default: int) -> int:
        dim = self._size("attention.key_length", default)
        for key in ("attention.value_length", "rope.dimension_count"):
            if self._size(key, dim) != dim:
                raise ValueError(
                    f"{self.path}: {self.family}.{key} was {self._size(key)}; "
                    f"it must be the length of a key, {dim}"
                )
        if dim % 2:
            raise ValueError(f"{self.path}: heads had {dim} rows; rotary embeddings need even ones")
        return dim

    def _rope(self, head_dim: int) -> RopeConfig:
        theta = self._number("rope.freq_base", 10000.0)
        factor = self._number("rope.scaling.factor", self._number("rope.scale_linear", 0.0))
        # A factor alone means linear scaling, as it does to llama.cpp.
        named = self.value(f"{self.family}.rope.scaling.type")
        kind = named or ("linear" if factor else "none")
        if kind not in ("none", "linear"):
            raise ValueError(
                f"{self.path}: {self.family}.rope.scaling.type {kind!r} is not supported; "
                "none and linear are"
            )
        if kind == "linear":
            return RopeConfig(theta, "linear", self._linear_factor(factor))
        if self._factors is None:
            return RopeConfig(theta)
        factors = self._dequantised(self._factors).tolist()
        if len(factors) != head_dim // 2:
            raise ValueError(
                f"{self.path}: tensor {ROPE_FACTORS} was [{len(factors)}]; "
                f"it must be [{head_dim // 2}]"
            )
        return RopeConfig(theta, "factors", factors=tuple(factors))

    def _linear_factor(self, factor: float) -> float:
        if factor <= 0.0:
            raise ValueError(
                f"{self.path}: {self.family}.rope.scaling.factor was {factor:g}; "
                "with type linear it must be positive"
            )
        if self._factors is not None:
            raise ValueError(
                f"{self.path} has linear rope scaling and a tensor {ROPE_FACTORS}; "
                "only one of them is supported"
            )
        return factor

    def _rows(self, name: str) -> int:
        tensor = self._tensors.get(_checkpoint_name(name))
        if tensor is None:
            raise ValueError(f"{self.path}: tensor {name} is missing")
        return int(tensor.shape[-1])

    def _has(self, name: str) -> bool:
        return _checkpoint_name(name) in self._tensors

    def _stored_dtype(self) -> torch.dtype:
        """Of the matrices; what is quantised counts as bfloat16."""
        stored = self._tensors[_checkpoint_name("token_embd.weight")].tensor_type.name
        return STORED_DTYPES.get(stored, torch.bfloat16)

    # ------------------------------------------------------------------ tensors
    def names(self) -> Iterable[str]:
        """Of all tensors, as a checkpoint's; a name without a place there stays as it is."""
        return self._tensors.keys()

    def label(self, name: str) -> str:
        """What the file calls (or would call) the tensor ``name``."""
        tensor = self._tensors.get(name)
        return _file_name(name) if tensor is None else tensor.name

    def fetch(self, name: str) -> torch.Tensor:
        """The tensor in float32, dequantised, its rows in the order of a checkpoint."""
        found = self._dequantised(self._tensors[name])
        config, part = self.config, name.split(".")[-2]
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(part)
        if heads is None or config.family != "llama" or len(found) != heads * config.head_dim:
            return found
        return unpermuted(found, heads)

    def _dequantised(self, tensor: ReaderTensor) -> torch.Tensor:
        quants = _package().quants
        out = np.empty([int(size) for size in reversed(tensor.shape)], dtype=np.float32)
        # A vector's blocks are not rows.
        step = max(BLOCK_ELEMENTS // out.shape[-1], 1) if out.ndim > 1 else max(len(out), 1)
        try:
            for begin in range(0, len(out), step):
                block = slice(begin, begin + step) if out.ndim > 1 else ...
                out[block] = quants.dequantize(tensor.data[block], tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(
                f"{self.path}: tensor {tensor.name} has type {tensor.tensor_type.name}, "
                "which cannot be dequantised"
            ) from error
        self._forget_pages()
        return torch.from_numpy(out)

    def _forget_pages(self) -> None:
        """Of the mapped file, what was read counts as this process's memory until it is dropped."""
        mapped: Any = self._reader.data.base
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def unpermuted(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows ``[heads * D, ...]`` of q or k in the order of a checkpoint.

    Within a head the file has row 0, D/2, 1, D/2 + 1, ...
    """
    halves = rows.view(heads, -1, 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def _checkpoint_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``."""
    stem, _, kind = name.rpartition(".")
    if stem in WHOLE_NAMES:
        return f"{WHOLE_NAMES[stem]}.{kind}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in LAYER_NAMES:
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.{kind}"
    return name


def _file_name(name: str) -> str:
    """The inverse of ``_checkpoint_name``."""
    stem, _, kind = name.rpartition(".")
    for ours, theirs in WHOLE_NAMES.items():
        if stem == theirs:
            return f"{ours}.{kind}"
    for ours, theirs in LAYER_NAMES.items():
        if stem.endswith(f".{theirs}"):
            layer = stem.removeprefix("model.layers.").removesuffix(f".{theirs}")
            return f"blk.{layer}.{ours}.{kind}"
    return name
