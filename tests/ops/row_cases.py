"""Rows of logits, kinds of arrays and the loop over seeds that the tests of the row ops share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

#: For tests whose time is the oracle's: one order of threads; the "same bits" tests try them all.
one_order = pytest.mark.parametrize(
    "backend", ["cpu", "simt", pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True
)

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


def moved(value: Any, device: str) -> Any:
    """Arrays as tensors on that device, tuples element by element, anything else as it is."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        items = [moved(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def run_on(backend: str, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls an op on a backend; on "cuda" its arguments go to the device and the results back."""
    if backend != "cuda":
        return op(*args, **kwargs, backend=backend)
    args = tuple(moved(value, "cuda") for value in args)
    kwargs = {name: moved(value, "cuda") for name, value in kwargs.items()}
    return moved(op(*args, **kwargs, backend=backend), "cpu")


def same_bits(got: Any, wanted: Any) -> bool:
    """Whether all outputs are equal; NaN equals NaN."""
    return all(
        np.array_equal(np.asarray(x).view(np.int32), np.asarray(y).view(np.int32))
        for x, y in zip(got, wanted, strict=True)
    )


#: Vocabularies around the sizes of a warp and of a chunk.
SIZES = [1, 2, 31, 33, 100, 1023, 1024, 1025, 5000]


def with_bad_values(rng: np.random.Generator, logits: np.ndarray) -> torch.Tensor:
    """In some dtype, and now and then with a NaN or an infinity."""
    if rng.random() < 0.3:
        bad = rng.random(logits.shape) < 0.3 / logits.shape[-1]
        logits = np.where(bad, rng.choice(np.float32([np.nan, np.inf, -np.inf])), logits)
    return stored(logits, list(DTYPES)[int(rng.integers(3))])


def random_logits(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Of any kind and dtype, now and then with bad values."""
    return with_bad_values(rng, logits_of(KINDS[int(rng.integers(len(KINDS)))], rng, *shape))


def random_cutoffs(rng: np.random.Generator, *shape: int) -> torch.Tensor | None:
    """None, or one a row: most cut something, one in ten is NaN and keeps nothing."""
    if rng.random() < 0.5:
        return None
    cutoff = rng.standard_normal(shape) * 1.5
    cutoff[rng.random(shape) < 0.1] = np.nan
    return f32(cutoff)
