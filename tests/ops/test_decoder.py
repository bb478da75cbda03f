"""The decoder against the ops it is made of, bit for bit (each has its own float64 reference)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from specbranch import ops
from specbranch.ops import LayerTensors

D, HQ, HKV, F, WIDTH, LAYERS, SLOTS, P = 8, 4, 2, 24, 20, 3, 40, 64


def _layers(
    dtype: torch.dtype,
    extras: bool,
    pack: Callable[[torch.Tensor], torch.Tensor] = ops.pack_weight,
) -> list[LayerTensors]:
    def vector(size: int) -> torch.Tensor:
        return torch.randn(size).to(dtype)

    def matrix(outputs: int, inputs: int) -> torch.Tensor:
        return pack(torch.randn(outputs, inputs) / inputs**0.5)

    def optional(size: int) -> torch.Tensor | None:
        return vector(size) if extras else None

    heads = (HQ + 2 * HKV) * D
    return [
        LayerTensors(
            vector(WIDTH),
            matrix(heads, WIDTH),
            optional(heads),
            optional(D),
            optional(D),
            matrix(WIDTH, HQ * D),
            optional(WIDTH),
            vector(WIDTH),
            matrix(2 * F, WIDTH),
            optional(2 * F),
            matrix(WIDTH, F),
            optional(WIDTH),
        )
        for _ in range(LAYERS)
    ]


def _one_by_one(layers, norm, cos, sin, residual, cache, place, bits):
    """What the decoder must give: final norm's output and every layer's output."""
    count, outputs, delta = len(residual), [], None
    for idx, w in enumerate(layers):
        normed = ops.add_rms_norm(residual, w.input_norm, delta, eps=1e-5)
        if idx:
            outputs.append(residual.clone())
        qkv = ops.linear(normed, w.qkv, (HQ + 2 * HKV) * D, bias=w.qkv_bias)
        query = ops.rope_kv_write(
            qkv.view(1, count, -1),
            cos,
            sin,
            place["positions"],
            place["slots"],
            cache[idx],
            HQ,
            q_norm=w.q_norm,
            k_norm=w.k_norm,
            eps=1e-5,
        )
        seen = ops.tree_attention(query, cache[idx], place["prefix_length"], bits)
        delta = ops.linear(seen.view(count, -1), w.out, WIDTH, bias=w.out_bias)
        normed = ops.add_rms_norm(residual, w.mlp_norm, delta, eps=1e-5)
        inner = ops.silu_mul(ops.linear(normed, w.gate_up, 2 * F, bias=w.gate_up_bias))
        delta = ops.linear(inner, w.down, WIDTH, bias=w.down_bias)
    normed = ops.add_rms_norm(residual, norm, delta, eps=1e-5)
    return normed, torch.stack([*outputs, residual], dim=1)


def _decoder(layers: list[LayerTensors], norm: torch.Tensor, **changes: int) -> ops.Decoder:
    angles = torch.rand(P, D // 2)
    sizes = {"num_q_heads": HQ, "num_kv_heads": HKV, "head_dim": D, "inner_size": F}
    return ops.Decoder(layers, norm, angles.cos(), angles.sin(), eps=1e-5, **(sizes | changes))


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "biases and head norms"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("count", [1, 5, 13])
@pytest.mark.parametrize("pack", [ops.pack_weight, ops.pack_weight_int8], ids=["exact", "int8"])
def test_equals_its_ops(
    count: int, dtype: torch.dtype, extras: bool, pack: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    torch.manual_seed(count)
    layers, norm = _layers(dtype, extras, pack), torch.randn(WIDTH).to(dtype)
    angles = torch.rand(P, D // 2)
    cos, sin = angles.cos(), angles.sin()
    cache = torch.randn(LAYERS, 2, 1, HKV, SLOTS, D).to(dtype)
    residual = torch.randn(count, WIDTH).to(dtype)
    parents = torch.tensor([[idx // 2 - 1 for idx in range(count)]], dtype=torch.int32)
    place = {
        "positions": torch.arange(20, 20 + count, dtype=torch.int32)[None],
        "slots": torch.arange(20, 20 + count, dtype=torch.int32)[None],
        "prefix_length": torch.tensor([20], dtype=torch.int32),
    }
    for bits in (None, ops.tree_mask(parents).bits):
        kept = cache.clone()
        expected, outputs = _one_by_one(layers, norm, cos, sin, residual.clone(), kept, place, bits)
        decoder = ops.Decoder(
            layers,
            norm,
            cos,
            sin,
            num_q_heads=HQ,
            num_kv_heads=HKV,
            head_dim=D,
            inner_size=F,
            eps=1e-5,
        )
        for wanted in range(LAYERS + 1):
            mine, ours = cache.clone(), residual.clone()
            out = torch.full_like(residual, float("nan"))
            hidden = torch.full((count, wanted, WIDTH), float("nan")).to(dtype)
            decoder.forward(
                ours,
                mine,
                place["positions"],
                place["slots"],
                place["prefix_length"],
                bits,
                out=out,
                hidden=hidden if wanted else None,
            )
            assert torch.equal(out, expected) and torch.equal(mine, kept)
            assert torch.equal(hidden, outputs[:, LAYERS - wanted :])


def test_bad_input() -> None:
    torch.manual_seed(0)
    layers, norm = _layers(torch.float32, extras=True), torch.randn(WIDTH)
    with pytest.raises(ValueError, match="qkv had shape"):
        _decoder(layers, norm, num_q_heads=2)
    with pytest.raises(TypeError, match="input_norm had dtype float64"):
        _decoder([layers[0]._replace(input_norm=layers[0].input_norm.double())], norm)
    decoder = _decoder(layers, norm)
    good = {
        "residual": torch.randn(2, WIDTH),
        "cache": torch.zeros(LAYERS, 2, 1, HKV, SLOTS, D),
        "positions": torch.tensor([[0, 1]], dtype=torch.int32),
        "slots": torch.tensor([[0, 1]], dtype=torch.int32),
        "prefix_length": torch.tensor([0], dtype=torch.int32),
        "ancestor_bits": None,
        "out": torch.empty(2, WIDTH),
    }
    decoder.forward(**good)
    bad = {
        "residual": torch.randn(2, WIDTH + 1),
        "cache": torch.zeros(LAYERS + 1, 2, 1, HKV, SLOTS, D),
        "positions": torch.tensor([[0, P]], dtype=torch.int32),
        "slots": torch.tensor([[0, SLOTS]], dtype=torch.int32),
        "prefix_length": torch.tensor([SLOTS], dtype=torch.int32),
        "hidden": torch.empty(2, LAYERS + 1, WIDTH),
        "out": torch.empty(3, WIDTH),
    }
    for name, value in bad.items():
        with pytest.raises(ValueError, match=f"{name} had"):
            decoder.forward(**(good | {name: value}))
