"""The emulated grid: right kernels give right results, wrong ones are found out.

A kernel that only a GPU would show to be wrong (it hangs, or it corrupts) must fail here, with a
message from which one can tell what to mend.
"""

from __future__ import annotations

import numpy as np
import pytest

from specbranch import _C

ORDERS = {"forward": 0, "reverse": 1, "random": 2}
probe = _C.probe


@pytest.fixture(params=ORDERS)
def order(request: pytest.FixtureRequest) -> int:
    return ORDERS[request.param]


@pytest.mark.parametrize("threads", [32, 64, 256, 1024])
@pytest.mark.parametrize("size", [1, 31, 1000, 40_000])
def test_sum_over_blocks(order: int, threads: int, size: int) -> None:
    values = np.random.default_rng(size).integers(-8, 9, size).astype(np.float32)
    assert probe.simt_sum(values.tolist(), threads, order) == values.sum()


def test_collectives(order: int) -> None:
    got = probe.simt_run("collectives", order)
    for thread, value in enumerate(got):
        lane = thread % 32
        down = lane + 3 if lane + 3 < 32 else lane
        up = lane - 4 if lane % 8 >= 4 else lane
        wanted = (95 - thread) + 5 + 10 * down + 100 * up
        wanted += 3 if lane < 16 else 0  # ballot of half a warp
        wanted += 16 + 1  # odd lanes, any
        wanted += 0 + 3 + 1  # all, count, and
        assert value == wanted, f"thread {thread}"


HANGS = {
    "early_return": r"block 0 hangs: threads 0..63 wait in __syncthreads at probes.cpp:\d+; "
    r"threads 64..95 have ended",
    "divergent_barriers": r"threads 0..31 wait in __syncthreads at probes.cpp:(\d+); "
    r"threads 32..95 wait in __syncthreads at probes.cpp:(?!\1)\d+",
    "missing_lane": r"threads 0..8 wait in __syncwarp at probes.cpp:\d+ \(mask ffffffff\); "
    r"threads 9..9 have ended",
    "ballot_against_barrier": r"threads 0..15 wait in __ballot_sync.*; threads 16..95 wait in "
    r"__syncthreads",
    "wrong_mask": r"threads 0..15 wait in __shfl_xor_sync .*mask ffffffff",
    "absent_source": r"thread 0 of block 0 reads lane 20, which takes no part, in __shfl_sync",
}


@pytest.mark.parametrize("name", HANGS)
def test_what_would_hang_is_named(name: str, order: int) -> None:
    pattern = HANGS[name]
    if name == "absent_source" and order:
        pattern = pattern.replace("thread 0", r"thread \d+")
    with pytest.raises(RuntimeError, match=pattern):
        probe.simt_run(name, order)
    probe.simt_run("collectives", order)  # and the emulator is as good as new


@pytest.mark.parametrize("name", ["race", "block_race"])
def test_a_race_shows_as_a_difference_between_orders(name: str) -> None:
    results = [probe.simt_run(name, order) for order in ORDERS.values()]
    assert results[0] != results[1]


@pytest.mark.parametrize(
    ("threads", "message"), [(0, "0 threads"), (1025, "1025 threads"), (32, None)]
)
def test_launch_limits(threads: int, message: str | None) -> None:
    if message is None:
        assert probe.simt_sum([1.0], threads, 0) == 1.0
        return
    with pytest.raises((RuntimeError, ZeroDivisionError), match=message):
        probe.simt_sum([1.0], threads, 0)
