"""What the wrappers of the row ops share: Python numbers as [B] rows, the two ways to draw."""

from __future__ import annotations

import numpy as np

from ._common import TensorLike, new

_DRAWS = {"inverse_cdf": False, "gumbel": True}


def rows(name: str, value: TensorLike, like: TensorLike, dtype: str) -> TensorLike:
    """``value`` as it is, or a Python number broadcast to the ``B`` rows of ``like``."""
    if not isinstance(value, (int, float)):
        return value
    if dtype.startswith("int") and (isinstance(value, float) or not fits(value, dtype)):
        raise ValueError(f"{name} was {value!r}, must be an {dtype} integer")
    filled = new(like, (batch_of(like),), dtype)
    filled[:] = value
    return filled


def fits(value: int, dtype: str) -> bool:
    """Whether a Python integer is in the range of ``dtype``."""
    info = np.iinfo(dtype)
    return bool(info.min <= value <= info.max)


def batch_of(logits: TensorLike) -> int:
    """The first dimension, or 0 for what is no array: the native op then names the argument."""
    shape: tuple[int, ...] = tuple(getattr(logits, "shape", ()))
    return shape[0] if shape else 0


def is_gumbel(draw: str) -> bool:
    """``draw`` as the native ops take it."""
    try:
        return _DRAWS[draw]
    except (KeyError, TypeError):
        raise ValueError(f'draw was {draw!r}, must be "inverse_cdf" or "gumbel"') from None
