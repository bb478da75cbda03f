"""Checkpoints: directories in Hugging Face format (config.json, safetensors), and GGUF files.

``model_from_tensors`` is the same without files, for weights that are made rather than read.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from .. import ops
from ..devices import resolve_device
from .config import LlamaConfig, NotNativeError, read_config, read_json, stored_dtype
from .gguf import GgufFile, find_gguf
from .linear import Int8Linear, Linear, PlainLinear
from .llama import LayerWeights, LlamaModel

if TYPE_CHECKING:
    from .hf import HFModel

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
WEIGHTS = ("exact", "int8")
MakeLinear = Callable[[torch.Tensor, torch.Tensor | None], Linear | PlainLinear]

logger = logging.getLogger(__name__)


def load_model(
    folder: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    backend: ops.Backend | None = None,
    weights: str = "exact",
) -> LlamaModel | HFModel:
    """Load a checkpoint: natively the Llama family, by way of transformers others.

    The model's ``implementation`` says which it was, ``"native"`` or ``"transformers"``.

    Args:
        folder: holds config.json and model.safetensors (or its sharded index), or else one .gguf
            file; or that file itself. Needs the package ``gguf`` then.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, a torch dtype, or ``"auto"``: float32
            on a CPU, the stored one elsewhere (bfloat16 for what is stored quantised).
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        backend: which kernels to use, by default those of the device. ``"simt"`` runs the code path
            of a CUDA device on a CPU, its kernels emulated: for tests, slow.
        weights: ``"exact"``, or ``"int8"``: all matrices but the embedding are rounded to int8, a
            scale an output, as they are read. **This is another model** than the checkpoint's, near
            to it, of a quarter of float32's bytes; see docs/weights.md. Native models on a CPU.

    Raises:
        FileNotFoundError, ValueError: naming the file, field or tensor, and what was expected.
        ModuleNotFoundError: the model needs transformers, or a GGUF file the package ``gguf``,
            and it is not installed.
    """
    folder = Path(folder)
    file = find_gguf(folder)
    where = resolve_device(device)
    check_weights(weights, where, backend)
    if file is not None:
        opened = GgufFile(file)
        wanted = _resolve_dtype(dtype, opened.config.stored_dtype, where)
        logger.info("%s: native, %s", file, opened.config.family)
        return _build(opened.config, _Gguf(opened, wanted, where), backend, weights)
    _check_folder(folder)
    try:
        config = read_config(folder)
    except NotNativeError as reason:
        if weights != "exact":
            raise ValueError(
                f"{folder}: weights was {weights!r}; it must be 'exact' for a model that runs by "
                f"way of transformers, as this one does: {reason}"
            ) from reason
        return _load_with_transformers(folder, reason, dtype, where, backend)
    wanted = _resolve_dtype(dtype, config.stored_dtype, where)
    logger.info("%s: native, %s", folder, config.family)
    return _build(config, _Folder(folder, wanted, where), backend, weights)


def check_weights(
    weights: str, device: torch.device, backend: ops.Backend | None = None, name: str = "weights"
) -> None:
    """Refuse a kind of weights that there is not, or not there.

    Args:
        weights: to be checked.
        device, backend: where the model is to run.
        name: of the argument, for messages.

    Raises:
        ValueError: naming the argument, what it was and what it must be.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"{name} was {weights!r}; it must be {' or '.join(WEIGHTS)}")
    if weights != "exact" and not _is_native(device, backend):
        where = f"backend {backend}" if device.type == "cpu" else f"device {device}"
        raise ValueError(
            f"{name} was {weights!r}, which only the CPU's own matrix products read; "
            f"on {where} it must be 'exact'"
        )


def _is_native(device: torch.device, backend: ops.Backend | None) -> bool:
    """Whether matrix products are our own."""
    return device.type == "cpu" and backend in (None, "cpu")


def load_config(folder: str | Path) -> LlamaConfig:
    """Sizes and switches of a native checkpoint, without its weights; errors as ``load_model``."""
    folder = Path(folder)
    file = find_gguf(folder)
    if file is not None:
        return GgufFile(file).config
    _check_folder(folder)
    return read_config(folder)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a directory; it must be a checkpoint directory or a .gguf file"
        )


def _load_with_transformers(
    folder: Path,
    reason: NotNativeError,
    dtype: str | torch.dtype,
    device: torch.device,
    backend: ops.Backend | None,
) -> HFModel:
    """A model that the Llama family's code does not compute, for ``reason``."""
    from .hf_load import load_hf_model

    logger.info("not native: %s", reason)
    wanted = _resolve_dtype(dtype, stored_dtype(read_json(folder / "config.json")), device)
    files = _Folder(folder, wanted, device)
    files.check_files()
    try:
        return load_hf_model(folder, dtype=wanted, device=device, backend=backend)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{reason}; {error}") from error


def model_from_tensors(
    config: LlamaConfig,
    tensors: Mapping[str, torch.Tensor],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    backend: ops.Backend | None = None,
    weights: str = "exact",
) -> LlamaModel:
    """A model over ``tensors``, named and shaped as a Hugging Face checkpoint's would be.

    Each tensor is asked for once, when its layer is built: a mapping that makes its values when
    they are asked for needs no room for a second copy of the model.

    Args:
        config: sizes and constants.
        tensors: all weights.
        dtype, device, backend, weights: as for ``load_model``.

    Raises:
        ValueError: naming the tensor or argument, what it was, and what it must be.
    """
    where = resolve_device(device)
    check_weights(weights, where, backend)
    wanted = _resolve_dtype(dtype, config.stored_dtype, where)
    return _build(config, _Given(tensors, wanted, where), backend, weights)


def _resolve_dtype(
    dtype: str | torch.dtype, stored: torch.dtype, device: torch.device
) -> torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else stored
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise ValueError(f"dtype was {dtype!r}; it must be auto, {', '.join(DTYPES)}")


class _Tensors(ABC):
    """Tensors by name, fetched on demand; remembers which were asked for."""

    def __init__(self, origin: object, dtype: torch.dtype, device: torch.device) -> None:
        self.origin, self.dtype, self.device = origin, dtype, device
        self._used: set[str] = set()

    @abstractmethod
    def names(self) -> Iterable[str]:
        """Of all tensors there are."""

    @abstractmethod
    def fetch(self, name: str) -> torch.Tensor:
        """The tensor as it is kept."""

    def label(self, name: str) -> str:
        """What a message calls the tensor."""
        return name

    def __call__(self, name: str, *shape: int) -> torch.Tensor:
        """Tensor ``name`` in the wanted dtype; its shape must be ``shape``."""
        what = f"{self.origin}: tensor {self.label(name)}"
        if name not in self.names():
            raise ValueError(f"{what} is missing; it must be {list(shape)}")
        self._used.add(name)
        tensor = self.fetch(name)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{what} was {list(tensor.shape)}; it must be {list(shape)}")
        if tensor.dtype not in DTYPES.values():
            raise ValueError(f"{what} was {tensor.dtype}; it must be a float")
        return tensor.to(self.device, self.dtype).contiguous()

    def check_all_used(self, config: LlamaConfig) -> None:
        """Refuse tensors that the architecture has no place for."""
        ignored = {"lm_head.weight"} if config.tied else set()
        left = [
            name
            for name in sorted(set(self.names()) - self._used - ignored)
            if not name.endswith("rotary_emb.inv_freq")
        ]
        if left:
            raise ValueError(
                f"{self.origin}: {len(left)} tensors are not part of {config.family}, "
                f"the first is {self.label(left[0])}"
            )


class _Given(_Tensors):
    """The tensors of a mapping."""

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__("tensors", dtype, device)
        self._tensors, self._names = tensors, frozenset(tensors)

    def names(self) -> Iterable[str]:
        """The keys."""
        return self._names

    def fetch(self, name: str) -> torch.Tensor:
        """The value."""
        return self._tensors[name]


class _Gguf(_Tensors):
    """The tensors of a GGUF file, dequantised one by one."""

    def __init__(self, file: GgufFile, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(file.path, dtype, device)
        self._file = file

    def names(self) -> Iterable[str]:
        """All that the file has, by a checkpoint's names."""
        return self._file.names()

    def label(self, name: str) -> str:
        """The file's own name."""
        return self._file.label(name)

    def fetch(self, name: str) -> torch.Tensor:
        """Dequantise it."""
        return self._file.fetch(name)


class _Folder(_Tensors):
    """The tensors of a checkpoint directory."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(folder, dtype, device)
        self.folder = folder
        self._file_of = self._index()

    def _index(self) -> dict[str, Path]:
        index, single = (
            self.folder / "model.safetensors.index.json",
            self.folder / "model.safetensors",
        )
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise ValueError(f"{index}: weight_map was missing; it must map tensors to files")
            if not all(isinstance(name, str) for name in weight_map.values()):
                raise ValueError(f"{index}: weight_map must map tensors to names of files")
            for name in sorted(set(weight_map.values())):
                if not (self.folder / name).is_file():
                    raise FileNotFoundError(
                        f"{self.folder / name} does not exist; {index} names it"
                    )
            return {key: self.folder / name for key, name in weight_map.items()}
        if single.is_file():
            with self._open(single) as file:
                return dict.fromkeys(file.keys(), single)
        pickles = sorted(self.folder.glob("*.bin"))
        if pickles:
            raise ValueError(f"{pickles[0]} is a pickle, which can run code; use safetensors")
        raise FileNotFoundError(f"{single} does not exist; a Hugging Face checkpoint has one")

    def check_files(self) -> None:
        """Refuse files that are not whole, before somebody else reads them."""
        for path in sorted(set(self._file_of.values())):
            with self._open(path):
                pass

    @staticmethod
    def _open(path: Path) -> safe_open:
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error

    def names(self) -> Iterable[str]:
        """All that the file or the index names."""
        return self._file_of.keys()

    def fetch(self, name: str) -> torch.Tensor:
        """Read it from its file."""
        with self._open(self._file_of[name]) as file:
            try:
                tensor: torch.Tensor = file.get_tensor(name)
            except SafetensorError as error:
                raise ValueError(f"{self._file_of[name]} has no tensor {name}: {error}") from error
        return tensor


def _build(
    config: LlamaConfig, get: _Tensors, backend: ops.Backend | None, weights: str
) -> LlamaModel:
    linear: MakeLinear = PlainLinear
    if _is_native(get.device, backend):
        linear = Int8Linear if weights == "int8" else Linear
    embedding = get("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
    layers = []
    for idx in range(config.num_layers):
        layers.append(_layer(config, get, linear, f"model.layers.{idx}."))
        _return_freed_memory()
    norm = get("model.norm.weight", config.hidden_size)
    head = embedding
    if not config.tied:
        head = get("lm_head.weight", config.vocab_size, config.hidden_size)
    get.check_all_used(config)
    packed = _made(linear, head, None, f"{get.origin}: the head")
    _return_freed_memory()
    return LlamaModel(config, embedding, layers, norm, packed, backend)


def _made(
    linear: MakeLinear,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    what: str,
) -> Linear | PlainLinear:
    """The layer, or an error that says which one could not be made."""
    try:
        return linear(weight, bias)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _return_freed_memory() -> None:
    """Give the system what was freed between weights that stay; the C library would keep it."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)


def _layer(config: LlamaConfig, get: _Tensors, linear: MakeLinear, at: str) -> LayerWeights:
    hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_heads * dim, config.num_kv_heads * dim

    def fused(parts: dict[str, int], bias: bool, width: int) -> Linear | PlainLinear:
        weight = torch.empty(sum(parts.values()), width, dtype=get.dtype, device=get.device)
        row = 0
        for name, rows in parts.items():  # no two of them are in memory at a time
            weight[row : row + rows] = get(f"{at}{name}.weight", rows, width)
            row += rows
        biases = [get(f"{at}{name}.bias", rows) for name, rows in parts.items()] if bias else []
        joined = torch.cat(biases) if biases else None
        return _made(linear, weight, joined, f"{get.origin}: {at}{' / '.join(parts)}")

    attention = {
        "self_attn.q_proj": queries,
        "self_attn.k_proj": keys,
        "self_attn.v_proj": keys,
    }
    return LayerWeights(
        input_norm=get(f"{at}input_layernorm.weight", hidden),
        qkv=fused(attention, config.qkv_bias, hidden),
        q_norm=get(f"{at}self_attn.q_norm.weight", dim) if config.qk_norm else None,
        k_norm=get(f"{at}self_attn.k_norm.weight", dim) if config.qk_norm else None,
        out=fused({"self_attn.o_proj": hidden}, config.o_bias, queries),
        mlp_norm=get(f"{at}post_attention_layernorm.weight", hidden),
        gate_up=fused({"mlp.gate_proj": inner, "mlp.up_proj": inner}, config.mlp_bias, hidden),
        down=fused({"mlp.down_proj": hidden}, config.mlp_bias, inner),
    )
