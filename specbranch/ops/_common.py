"""What the ops' Python side shares: making outputs of the caller's kind."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import torch

#: A torch tensor, a NumPy array, or any object with ``__dlpack__``.
TensorLike: TypeAlias = Any

#: Where an op runs; "simt" is the CUDA kernel emulated on the CPU, in three orders of its threads.
Backend = Literal["cpu", "simt", "simt:reverse", "simt:random", "cuda"]

_TORCH = {
    "int32": torch.int32,
    "int64": torch.int64,
    "float32": torch.float32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


def new(like: TensorLike, shape: tuple[int, ...], dtype: str) -> TensorLike:
    """An uninitialised output: a torch tensor on `like`'s device if `like` is one, else NumPy."""
    if isinstance(like, torch.Tensor):
        return torch.empty(shape, dtype=_TORCH[dtype], device=like.device)
    return np.empty(shape, dtype)


def new_like(like: TensorLike, shape: tuple[int, ...]) -> TensorLike:
    """The same with the dtype of `like`."""
    if isinstance(like, torch.Tensor):
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    return np.empty(shape, getattr(like, "dtype", np.float32))


def shape_of(tensor: TensorLike, name: str, letters: str) -> tuple[int, ...]:
    """The shape of a tensor that must have one dimension per letter, e.g. "[B, N]"."""
    shape = getattr(tensor, "shape", None)
    if shape is None:
        kind = type(tensor).__name__
        raise TypeError(f"{name} was {kind}, must be a torch tensor or a NumPy array")
    if len(shape) != letters.count(",") + 1:
        raise ValueError(f"{name} had shape {list(shape)}, must be {letters}")
    return tuple(shape)


def runs_kernels(backend: Backend | None, like: TensorLike) -> bool:
    """Whether an op over ``like`` will run a CUDA kernel, emulated or not."""
    return backend != "cpu" if backend else bool(getattr(like, "is_cuda", False))
