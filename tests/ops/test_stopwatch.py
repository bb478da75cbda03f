"""stopwatch: what it adds up lies between what the host measures inside and around."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from ops.arrays import on_device

from specbranch import ops


def test_adds_up_stretches(backend: str) -> None:
    (times,) = on_device(backend, torch.tensor([5, 7]))
    outside = inside = 0.0
    for _ in range(3):
        begin = time.perf_counter()
        ops.stopwatch(times, start=True, backend=backend)
        started = time.perf_counter()
        time.sleep(0.01)
        inside += time.perf_counter() - started
        ops.stopwatch(times, start=False, backend=backend)
        outside += wait(backend) - begin
        time.sleep(0.02)  # not counted
    total = (int(times[0]) - 5) / 1e9
    slack = 0.002 if backend == "cuda" else 0.0  # launches are not executions
    assert inside - slack <= total <= outside + slack


def wait(backend: str) -> float:
    if backend == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def test_starting_keeps_the_sum(backend: str) -> None:
    (times,) = on_device(backend, torch.tensor([5, 7]))
    ops.stopwatch(times, start=True, backend=backend)
    assert int(times[0]) == 5 and int(times[1]) > 7


def test_numpy() -> None:
    times = np.zeros(2, np.int64)
    ops.stopwatch(times, start=True)
    ops.stopwatch(times, start=False)
    assert 0 <= times[0] < 10**9


@pytest.mark.parametrize(
    ("times", "error", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), ValueError, r"times had shape \[3\], must be \[2\]"),
        (torch.zeros(2), TypeError, "times had dtype float32, must be int64"),
        (torch.zeros(1, 2, dtype=torch.int64), ValueError, "times had shape"),
        ([0, 0], TypeError, "times was list"),
    ],
)
def test_bad_arguments(times: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.stopwatch(times, start=True)
