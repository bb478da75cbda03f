"""Inputs and outputs of the op tests: arrays of either library, and comparison in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

#: Largest relative error of rounding to the dtype.
ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}


class Kind(NamedTuple):
    """Makes arrays of one library and floating dtype."""

    library: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.library}-{self.dtype}"

    def floats(self, values: Any, dtype: str | None = None) -> Any:
        if self.library == "numpy":
            return np.array(values, dtype or self.dtype)
        return torch.tensor(np.asarray(values), dtype=getattr(torch, dtype or self.dtype))

    def ints(self, values: Any) -> Any:
        array = np.array(values, np.int32)
        return array if self.library == "numpy" else torch.from_numpy(array)

    def poisoned(self, *shape: int) -> Any:
        """A float output full of NaN."""
        return self.floats(np.full(shape, np.nan))

    def garbage(self, *shape: int) -> Any:
        """An integer output full of nonsense."""
        return self.ints(np.full(shape, 0x5A5A5A5A))


KINDS = [
    Kind("torch", "float32"),
    Kind("torch", "bfloat16"),
    Kind("torch", "float16"),
    Kind("numpy", "float32"),
    Kind("numpy", "float16"),
]


def on_device(backend: str, *tensors: Any) -> list[Any]:
    """The arguments of an op where the backend wants them; None and numbers stay."""
    return [t.cuda() if backend == "cuda" and hasattr(t, "cuda") else t for t in tensors]


def skip_numpy_on_device(backend: str, kind: Kind) -> None:
    if backend == "cuda" and kind.library == "numpy":
        pytest.skip("NumPy arrays are not on the device")


def values(tensor: Any) -> np.ndarray:
    """The exact values: float64 for floats, else as they are."""
    if isinstance(tensor, torch.Tensor):
        tensor = tensor.cpu()
        return (tensor.double() if tensor.is_floating_point() else tensor).numpy().copy()
    return tensor.astype(np.float64) if tensor.dtype.kind == "f" else tensor.copy()


def assert_close(
    actual: Any, expected: np.ndarray, kind: Kind, magnitude: Any, terms: float
) -> None:
    """Within the rounding of the result, and `terms` float32 roundings of `magnitude` before it."""
    bound = ROUNDING[kind.dtype] * np.abs(expected) + terms * 2.0**-24 * np.asarray(magnitude)
    # Subnormal float16 results are rounded to a multiple of 2^-24.
    bound = bound * 1.001 + (2.0**-25 if kind.dtype == "float16" else 1e-37)
    error = np.abs(values(actual) - expected)
    excess = np.where(error <= bound, 0.0, np.inf)
    worst = np.unravel_index(np.argmax(excess + error), error.shape) if error.size else None
    assert not excess.any(), f"at {worst}: {values(actual)[worst]} for {expected[worst]}"


def random_parents(rng: np.random.Generator, batch: int, nodes: int) -> np.ndarray:
    """Random trees, deep and flat ones mixed."""
    parents = np.empty((batch, nodes), np.int64)
    for i in range(nodes):
        recent = rng.random(batch) < 0.6
        parents[:, i] = np.where(recent, i - 1, rng.integers(-1, max(i, 1), batch) if i else -1)
    return parents
