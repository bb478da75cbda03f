"""What the wrappers of the row ops share: new outputs of the caller's kind, scalars as [B] rows."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

# A torch tensor, a NumPy array or anything else with DLPack.
Array = Any

_DRAWS = {"inverse_cdf": False, "gumbel": True}


def empty(like: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """A new array: torch where ``like`` is a torch tensor (on its device), else NumPy."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(like, torch.Tensor):
        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)
    return np.empty(shape, dtype=dtype)


def rows(name: str, value: Array, like: Array, dtype: str) -> Array:
    """``value`` as it is, or a Python number broadcast to the ``B`` rows of ``like``."""
    if not isinstance(value, (int, float)):
        return value
    if dtype.startswith("int") and (isinstance(value, float) or not fits(value, dtype)):
        raise ValueError(f"{name} was {value!r}, must be an {dtype} integer")
    filled = empty(like, (batch_of(like),), dtype)
    filled[:] = value
    return filled


def fits(value: int, dtype: str) -> bool:
    """Whether a Python integer is in the range of ``dtype``."""
    info = np.iinfo(dtype)
    return bool(info.min <= value <= info.max)


def batch_of(logits: Array) -> int:
    """The first dimension, or 0 for what is no array: the native op then names the argument."""
    shape = getattr(logits, "shape", ())
    return int(shape[0]) if len(shape) else 0


def shape_of(name: str, value: Array, letters: str, ndim: int) -> tuple[int, ...]:
    """The shape of an array of ``ndim`` dimensions."""
    shape = getattr(value, "shape", None)
    if shape is None:
        kind = type(value).__name__
        raise TypeError(f"{name} was {kind}, must be a torch tensor or a NumPy array")
    if len(shape) != ndim:
        raise ValueError(f"{name} had shape {list(shape)}, must be {letters}")
    return tuple(shape)


def is_gumbel(draw: str) -> bool:
    """``draw`` as the native ops take it."""
    try:
        return _DRAWS[draw]
    except (KeyError, TypeError):
        raise ValueError(f'draw was {draw!r}, must be "inverse_cdf" or "gumbel"') from None
