"""How tensors cross into the native module: every route, every refusal, by way of simple ops."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from specbranch import _C, ops


class ThroughDlpack:
    """An array of another library: nothing but the DLPack protocol."""

    def __init__(self, tensor: torch.Tensor, *, knows_max_version: bool = True) -> None:
        self.tensor = tensor
        self.knows_max_version = knows_max_version

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **options: Any) -> Any:
        if options and not self.knows_max_version:
            raise TypeError("unexpected keyword argument")
        return self.tensor.__dlpack__(**options)


def run(gate_up: Any) -> torch.Tensor:
    out = torch.full((2, 3), float("nan"))
    _C.silu_mul(gate_up, out, None, None)
    return out


GATE_UP = torch.arange(12.0).reshape(2, 6) - 5
EXPECTED = torch.nn.functional.silu(GATE_UP[:, :3]) * GATE_UP[:, 3:]


@pytest.mark.parametrize(
    "given",
    [
        GATE_UP,
        torch.nn.Parameter(GATE_UP, requires_grad=False),
        GATE_UP.numpy(),
        np.ma.array(GATE_UP.numpy()),
        memoryview(GATE_UP.numpy()),
        ThroughDlpack(GATE_UP),
        ThroughDlpack(GATE_UP, knows_max_version=False),
        torch.cat([GATE_UP, GATE_UP])[2:],
    ],
    ids=["torch", "parameter", "numpy", "subclass", "memoryview", "dlpack", "old dlpack", "offset"],
)
def test_every_route(given: Any) -> None:
    torch.testing.assert_close(run(given), EXPECTED)


def test_size_one_dimensions_may_have_any_stride() -> None:
    gate_up = torch.zeros(4, 6)[1:2].as_strided((1, 6), (77, 1))
    out = torch.zeros(1, 3)
    ops.silu_mul(gate_up, out=out)


def test_outputs_follow_the_first_input() -> None:
    assert isinstance(ops.silu_mul(GATE_UP), torch.Tensor)
    assert isinstance(ops.silu_mul(GATE_UP.numpy()), np.ndarray)


def misaligned() -> np.ndarray:
    return np.zeros(2 * 6 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(2, 6)


REFUSED: list[tuple[Any, type[Exception], str]] = [
    (None, TypeError, "gate_up was NoneType, must be a torch tensor or a NumPy array"),
    ([[1.0, 2.0]], TypeError, "gate_up was list"),
    (GATE_UP.double(), TypeError, "had dtype float64, must be float32 or bfloat16 or float16"),
    (GATE_UP.to(torch.complex64), TypeError, "had dtype an unsupported type"),
    (GATE_UP.numpy().astype(">f4"), TypeError, "element format '>f', which is not supported"),
    (np.zeros((2, 6), object), TypeError, "element format 'O'"),
    (GATE_UP.clone().requires_grad_(), ValueError, r"requires grad, must not be: detach\(\) it"),
    (torch.complex(GATE_UP, GATE_UP).conj().imag, ValueError, "negative bit"),
    (GATE_UP.to("meta"), TypeError, "could not be read as a dense tensor: .*meta"),
    (GATE_UP.to_sparse(), TypeError, "could not be read as a dense tensor"),
    (GATE_UP[None], ValueError, r"had shape \[1, 2, 6\], must be \[rows, 2F\]"),
    (GATE_UP.t().contiguous().t(), ValueError, r"had strides \[1, 2\] .* call .contiguous\(\)"),
    (GATE_UP[:, ::2], ValueError, "had strides"),
    (GATE_UP.numpy()[:, ::-1], ValueError, r"had strides \[6, -1\]"),
    (GATE_UP[:1].expand(2, 6), ValueError, r"had strides \[0, 1\]"),
    (misaligned(), ValueError, "was misaligned"),
    (torch.zeros((1,) * 9), ValueError, "had 9 dimensions"),
    (np.zeros((1,) * 9), ValueError, "had too many dimensions"),
    (
        np.zeros(2, np.dtype([("a", "f4"), ("b", "u1")]))["a"],
        ValueError,
        "strides that are no multiple",
    ),
]


@pytest.mark.parametrize(("given", "error", "message"), REFUSED)
def test_refused(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        run(given)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("gate_up ")


def test_read_only_arrays_are_inputs_not_outputs() -> None:
    array = GATE_UP.numpy().copy()
    array.flags.writeable = False
    torch.testing.assert_close(run(array), EXPECTED)
    out = np.zeros((2, 3), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out was read-only, must be writable"):
        ops.silu_mul(GATE_UP, out=out)


def test_fake_tensors_are_refused() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.zeros(2, 6)
    with pytest.raises((TypeError, ValueError), match="gate_up "):
        run(fake)


def test_refused_buffers_are_released() -> None:
    array = np.zeros((2, 6), np.float64)
    with pytest.raises(TypeError):
        run(array)
    run(GATE_UP.numpy())
    array.resize((3, 6), refcheck=False)  # raises BufferError while a view is held
    data = bytearray(48)
    with pytest.raises(TypeError, match="uint8"):
        run(data)
    data.append(0)  # likewise


def test_the_gil_is_released_for_big_work() -> None:
    """Another Python thread advances while one op runs."""
    q, layer = torch.zeros(1, 256, 8, 64), torch.zeros(2, 1, 8, 4096, 64)
    prefix = torch.tensor([3800], dtype=torch.int32)
    done, ticks = threading.Event(), 0

    def attend() -> None:
        ops.tree_attention(q, layer, prefix, None)
        done.set()

    worker = threading.Thread(target=attend)
    worker.start()
    while not done.wait(0.001):
        ticks += 1
    worker.join()
    assert ticks > 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_works() -> None:
    """A child of a process that has run a parallel region runs alone, instead of hanging."""
    import os
    import signal

    q, layer = torch.ones(1, 64, 8, 64), torch.ones(2, 1, 8, 1024, 64)
    prefix = torch.tensor([900], dtype=torch.int32)
    ops.tree_attention(q, layer, prefix, None)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        # torch itself must not be asked for a parallel region here.
        ops.tree_attention(q, layer, prefix, None, out=q)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
