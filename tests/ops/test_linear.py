"""linear against float64, and its promise that a row does not depend on its neighbours."""

from __future__ import annotations

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


@pytest.mark.parametrize("exact", [True, False])
def test_rows_do_not_depend_on_each_other(exact: bool) -> None:
    """Bit for bit, for every block of rows that the kernel has: what float comparisons rest on."""
    torch.manual_seed(1)
    weight = torch.randn(70, 130)
    packed = ops.pack_weight(weight.to(torch.bfloat16) if exact else weight)
    x = torch.randn(30, 130)
    alone = torch.cat([ops.linear(row, packed, 70) for row in x.split(1)])
    for rows in range(1, 31):
        assert torch.equal(ops.linear(x[:rows].contiguous(), packed, 70), alone[:rows])


@pytest.mark.parametrize("rows", [1, 2, 7, 13])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_over_nothing_are_the_bias(rows: int, dtype: torch.dtype) -> None:
    packed, bias = torch.empty(2, 0, 64, dtype=dtype), torch.arange(70.0)
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


def test_threads_do_not_change_the_result() -> None:
    torch.manual_seed(3)
    packed, x = ops.pack_weight(torch.randn(4096, 700)), torch.randn(9, 700)
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


def test_nothing_is_written_beyond_the_output() -> None:
    packed = ops.pack_weight(torch.ones(17, 3))
    guarded = torch.full((4, 17), -7.0)
    ops.linear(torch.ones(2, 3), packed, 17, out=guarded[1:3])
    assert (guarded[0] == -7).all() and (guarded[3] == -7).all() and (guarded[1:3] == 3).all()


def test_bad_input() -> None:
    packed = ops.pack_weight(torch.ones(20, 3))
    with pytest.raises(ValueError, match="weight had shape"):
        ops.linear(torch.ones(2, 4), packed, 20)
    with pytest.raises(ValueError, match="weight had shape"):
        ops.linear(torch.ones(2, 3), packed, 65)
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
