"""Rows of logits, kinds of arrays and the loop over seeds that the tests of the row ops share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_rng() -> tuple[np.random.Generator, int]:
    """A generator with a fresh seed; pytest shows the print of a test that fails."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed), seed


def logits_of(kind: str, rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Logits as float32. What "kind" may be is what is asked for below."""
    x = rng.standard_normal(shape).astype(np.float32)
    if kind == "flat":
        x *= np.float32(0.1)
    elif kind == "peaked":
        x *= np.float32(6)
    elif kind == "ties":
        x = np.round(x * 2) / np.float32(2)
    elif kind == "shifted":
        x = x * np.float32(3) + np.float32(-300)
    elif kind == "holes":
        x = np.where(rng.random(shape) < 0.5, np.float32(-np.inf), x)
        x[..., -1] = 0
    elif kind == "one_hot":
        x = np.full(shape, -np.inf, np.float32)
        x[..., int(rng.integers(shape[-1]))] = -3.0
    else:
        assert kind == "plain", kind
    return x


KINDS = ["plain", "flat", "peaked", "ties", "shifted", "holes", "one_hot"]


def stored(x: np.ndarray, dtype: str) -> torch.Tensor:
    """As a tensor of that dtype."""
    return torch.from_numpy(np.ascontiguousarray(x)).to(DTYPES[dtype])


def exact(tensor: torch.Tensor) -> np.ndarray:
    """What the op really gets, as float64."""
    return tensor.to(torch.float64).numpy()


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, with gaps of NaN between rows."""
    *lead, last = tensor.shape
    wide = torch.full((*lead[:-1], lead[-1] * 2, last + 3), float("nan"), dtype=tensor.dtype)
    view = wide[..., ::2, :last]
    view.copy_(tensor)
    return view


def i32(values: Any) -> torch.Tensor:
    """An int32 tensor."""
    return torch.as_tensor(np.asarray(values), dtype=torch.int32)


def i64(values: Any) -> torch.Tensor:
    """An int64 tensor."""
    return torch.as_tensor(np.asarray(values), dtype=torch.int64)


def f32(values: Any) -> torch.Tensor:
    """A float32 tensor."""
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)
