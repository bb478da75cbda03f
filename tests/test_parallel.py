"""The threads of the CPU ops: every task runs once, whoever calls, however many help."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from specbranch import ops

ROWS, WIDTH = 37, 1536  # 111 tasks


def inputs(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, 2 * WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_task_runs_once(threads: int) -> None:
    """Poisoned outputs show a task that was left out, a running sum one that ran twice."""
    residual, delta = torch.zeros(64, 512), torch.ones(64, 512)
    gate_up = inputs(0)
    with ops.limit_threads(1):
        wanted = ops.silu_mul(gate_up)
    with ops.limit_threads(threads):
        for count in range(1, 500):
            out = torch.full((ROWS, WIDTH), float("nan"))
            ops.silu_mul(gate_up, out=out)
            assert torch.equal(out, wanted)
            ops.add_rms_norm(residual, torch.ones(512), delta, eps=1e-5)
            assert (residual == count).all()


def test_callers_have_helpers_of_their_own() -> None:
    """Several threads call at once; their helpers end with them."""
    failed = []

    def call(seed: int) -> None:
        gate_up = np.random.default_rng(seed).standard_normal((ROWS, 2 * WIDTH), np.float32)
        with ops.limit_threads(1):
            wanted = ops.silu_mul(gate_up)
        with ops.limit_threads(2 + seed % 3):
            for _ in range(200):
                if not np.array_equal(ops.silu_mul(gate_up), wanted):
                    failed.append(seed)

    before = num_threads()
    for start in range(0, 24, 4):
        callers = [threading.Thread(target=call, args=(start + i,)) for i in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert not failed
    # A thread's helpers end after Python has called it ended.
    deadline = time.monotonic() + 30
    while num_threads() > before + 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert num_threads() <= before + 8, "of 24 callers with 1 to 3 helpers each"


def num_threads() -> int:
    """Of the process, those that Python does not know of included."""
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("Threads:"))
