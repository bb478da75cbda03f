"""linear against float64, and its promise that a row does not depend on its neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ops.arrays import Kind, assert_close, values

from specbranch import load_model, ops
from specbranch.ops import layers
from specbranch.pair import DEMO_DIR

SHAPES = [(1, 1, 1), (1, 256, 512), (2, 33, 17), (5, 7, 16), (13, 64, 100), (40, 48, 31), (0, 8, 4)]


@pytest.mark.parametrize("exact", [True, False], ids=["bfloat16 weight", "float32 weight"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_matches_oracle(
    kind: Kind, rows: int, inputs: int, outputs: int, with_bias: bool, exact: bool
) -> None:
    rng = np.random.default_rng([rows, inputs])
    weight = torch.tensor(rng.normal(size=(outputs, inputs)), dtype=torch.float32)
    if exact:
        weight = weight.to(torch.bfloat16).float()
    packed = ops.pack_weight(weight)
    if inputs * outputs > 1:
        assert packed.dtype == (torch.bfloat16 if exact else torch.float32)
    x = kind.floats(rng.normal(size=(rows, inputs)))
    bias = kind.floats(rng.normal(size=outputs)) if with_bias else None
    out = kind.poisoned(rows, outputs)
    assert ops.linear(x, packed, outputs, bias=bias, out=out) is out
    added = 0.0 if bias is None else values(bias)
    expected = values(x) @ weight.double().numpy().T + added
    magnitude = np.abs(values(x)) @ weight.double().abs().numpy().T + np.abs(added)
    assert_close(out, expected, kind, magnitude, terms=inputs + 2)
    np.testing.assert_array_equal(values(ops.linear(x, packed, outputs, bias=bias)), values(out))


def rounded(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What int8 makes of a weight, in plain NumPy: whole numbers [N, K] and scales [N]."""
    scales = (np.abs(weight).max(axis=1) / np.float32(127)).astype(np.float32)
    return np.rint(weight / scales[:, None]), scales


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [*SHAPES, (12, 129, 257), (7, 96, 64), (3, 65, 191)]
)
def test_int8_matches_oracle(
    kind: Kind, rows: int, inputs: int, outputs: int, with_bias: bool
) -> None:
    rng = np.random.default_rng([rows, inputs, 8])
    # Outputs of unlike sizes: a scale in another's place would be seen.
    weight = rng.normal(size=(outputs, inputs)) * 10.0 ** rng.integers(-3, 4, size=(outputs, 1))
    weight = weight.astype(np.float32)
    packed = ops.pack_weight_int8(torch.tensor(weight))
    assert packed.dtype == torch.int8
    whole, scales = rounded(weight)
    exact = whole * scales[:, None].astype(np.float64)
    assert (np.abs(exact - weight) <= scales[:, None] * 0.501).all()
    x = kind.floats(rng.normal(size=(rows, inputs)))
    bias = kind.floats(rng.normal(size=outputs)) if with_bias else None
    out = kind.poisoned(rows, outputs)
    assert ops.linear(x, packed, outputs, bias=bias, out=out) is out
    added = 0.0 if bias is None else values(bias)
    expected = values(x) @ exact.T + added
    magnitude = np.abs(values(x)) @ np.abs(exact).T + np.abs(added)
    assert_close(out, expected, kind, magnitude, terms=inputs + 3)


def test_int8_outputs_of_zeros_and_of_next_to_nothing() -> None:
    weight = torch.ones(70, 9)
    weight[3], weight[66] = 0.0, 1e-42  # the second's scale would be subnormal
    out = ops.linear(torch.ones(2, 9), ops.pack_weight_int8(weight), 70)
    expected = torch.full((2, 70), 9.0)
    expected[:, [3, 66]] = 0.0
    torch.testing.assert_close(out, expected, atol=0, rtol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_int8_holds_no_infinity(bad: float) -> None:
    weight = torch.ones(70, 9)
    weight[68, 2] = bad
    with pytest.raises(ValueError, match="weight had numbers that are not finite"):
        ops.pack_weight_int8(weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_int8_of_a_model_s_dtype_is_that_of_its_numbers(dtype: torch.dtype) -> None:
    torch.manual_seed(5)
    weight = torch.randn(70, 33).to(dtype)
    assert torch.equal(ops.pack_weight_int8(weight), ops.pack_weight_int8(weight.float()))


KINDS = {
    "bfloat16": lambda weight: ops.pack_weight(weight.bfloat16()),
    "float32": ops.pack_weight,
    "int8": ops.pack_weight_int8,
}


@pytest.mark.parametrize("pack", KINDS.values(), ids=KINDS)
def test_rows_do_not_depend_on_each_other(pack: Any) -> None:
    """Bit for bit, for every block of rows that the kernel has: what float comparisons rest on."""
    torch.manual_seed(1)
    packed = pack(torch.randn(70, 130))
    x = torch.randn(30, 130)
    alone = torch.cat([ops.linear(row, packed, 70) for row in x.split(1)])
    for rows in range(1, 31):
        assert torch.equal(ops.linear(x[:rows].contiguous(), packed, 70), alone[:rows])


@pytest.mark.parametrize("rows", [1, 2, 7, 13])
@pytest.mark.parametrize("pack", KINDS.values(), ids=KINDS)
def test_sums_over_nothing_are_the_bias(rows: int, pack: Any) -> None:
    packed, bias = pack(torch.empty(70, 0)), torch.arange(70.0)
    out = torch.full((rows, 70), float("nan"))
    ops.linear(torch.empty(rows, 0), packed, 70, bias=bias, out=out)
    assert torch.equal(out, bias.expand(rows, 70))


def test_the_check_above_can_fail() -> None:
    """A product whose order of summation depends on the rows is what it is there to catch."""
    torch.manual_seed(1)
    x, weight = torch.randn(9, 4099), torch.randn(70, 4099)
    forward = torch.stack([(row * weight).sum(1) for row in x])
    backward = torch.stack([(row.flip(0) * weight.flip(1)).sum(1) for row in x])
    assert not torch.equal(forward, backward)


@pytest.mark.parametrize("name", ["target", "draft"])
def test_verifying_many_equals_decoding_one_by_one(name: str) -> None:
    """Logits of a chain of 9 are bit for bit those of 9 single steps: greedy equality is exact."""
    model = load_model(DEMO_DIR / name)
    torch.manual_seed(2)
    tokens = torch.randint(0, model.vocab_size, (149,))
    alone, together = model.new_state(200, 16), model.new_state(200, 16)
    for state in (alone, together):
        state.prefill(tokens[:140])
    logits = together.forward(tokens[140:]).logits
    for idx in range(9):
        step = alone.forward(tokens[140 + idx : 141 + idx]).logits[0]
        alone.commit([0])
        assert torch.equal(step, logits[idx])


@pytest.mark.parametrize("pack", KINDS.values(), ids=KINDS)
def test_threads_do_not_change_the_result(pack: Any) -> None:
    torch.manual_seed(3)
    packed, x = pack(torch.randn(4096, 700)), torch.randn(9, 700)
    outputs = []
    for count in (1, 2):
        with ops.limit_threads(count):
            outputs.append(ops.linear(x, packed, 4096))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("exact", [True, False])
def test_a_matrix_of_more_rows_than_a_block(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    weight = torch.randn(330, 20).bfloat16().float()
    if not exact:
        weight[-1, -1] += 1e-4  # one number in the last block decides for all of them
    whole = ops.pack_weight(weight)
    assert whole.dtype == (torch.bfloat16 if exact else torch.float32)
    monkeypatch.setattr(layers, "BLOCK_ELEMENTS", 130 * 20)
    assert torch.equal(ops.pack_weight(weight), whole)


def test_an_int8_matrix_of_more_rows_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    weight = torch.randn(330, 20)
    whole = ops.pack_weight_int8(weight)
    monkeypatch.setattr(layers, "BLOCK_ELEMENTS", 130 * 20)
    assert torch.equal(ops.pack_weight_int8(weight), whole)


def test_nothing_is_written_beyond_the_output() -> None:
    packed = ops.pack_weight(torch.ones(17, 3))
    guarded = torch.full((4, 17), -7.0)
    ops.linear(torch.ones(2, 3), packed, 17, out=guarded[1:3])
    assert (guarded[0] == -7).all() and (guarded[3] == -7).all() and (guarded[1:3] == 3).all()


def test_weights_at_any_address() -> None:
    """The scales of int8 weights lie among bytes: nothing says that they are aligned."""
    torch.manual_seed(6)
    packed, x = ops.pack_weight_int8(torch.randn(70, 9)), torch.randn(2, 9)
    moved = torch.empty(packed.numel() + 1, dtype=torch.int8)[1:].view(packed.shape).copy_(packed)
    assert torch.equal(ops.linear(x, moved, 70), ops.linear(x, packed, 70))


def test_bad_input() -> None:
    packed = ops.pack_weight(torch.ones(20, 3))
    with pytest.raises(ValueError, match="weight had shape"):
        ops.linear(torch.ones(2, 4), packed, 20)
    with pytest.raises(ValueError, match="weight had shape"):
        ops.linear(torch.ones(2, 3), packed, 65)
    said = r"weight had shape \[1, 3, 64\], must be .* K or \(int8\) K \+ 4, 64\] = \[1, 7, 64\]"
    with pytest.raises(ValueError, match=said):
        ops.linear(torch.ones(2, 3), packed.to(torch.int8), 20)  # no room for scales
    with pytest.raises(TypeError, match="weight had dtype uint8, must be float32 or bfloat16 or"):
        ops.linear(torch.ones(2, 3), packed.to(torch.uint8), 20)
    with pytest.raises(ValueError, match="bias had shape"):
        ops.linear(torch.ones(2, 3), packed, 20, bias=torch.ones(3))
    with pytest.raises(TypeError, match="bias had dtype float64"):
        ops.linear(torch.ones(2, 3), packed, 20, bias=torch.ones(20).double())
    with pytest.raises(ValueError, match="x had shape"):
        ops.linear(torch.ones(3), packed, 20)
    with pytest.raises(TypeError, match="weight was"):
        ops.pack_weight(np.ones((2, 2)))
    with pytest.raises(ValueError, match="weight had shape"):
        ops.pack_weight(torch.ones(3))
    for op in (ops.pack_weight_int8, ops.quantise_int8):
        with pytest.raises(TypeError, match="weight was Tensor, must be a floating point"):
            op(torch.ones(2, 2, dtype=torch.int8))
        with pytest.raises(TypeError, match="weight was ndarray, must be a floating point"):
            op(np.ones((2, 2)))
        with pytest.raises(ValueError, match=r"weight had shape \[2, 3, 4\], must be"):
            op(torch.ones(2, 3, 4))
