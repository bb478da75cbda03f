"""Cases of the ops around attention and the cache, at the sizes of 7B and 8B Llama models."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from kernel_cases import Case, Grid, Inputs, full, ints, size_of

from specbranch import ops
from specbranch.ops.rounds import RoundState

Q_HEADS, KV_HEADS, DIM = 32, 8, 128
SLOTS = 512


def families(grid: Grid) -> list[Iterator[Case]]:
    """One iterator an op."""
    sizes = list(itertools.product(grid.batches, grid.gammas))
    long = [(*size, prefix) for prefix in grid.prefixes for size in sizes]
    # 64 sequences of 8192 slots are memory for an engine, not for a benchmark with peers.
    attention = [size for size in long if size[0] * size[2] <= 1 << 17]
    return [
        (_attention(grid, *size) for size in attention),
        (_commit(grid, *size) for size in sizes),
        (_kv_write(grid, *size) for size in sizes),
        (_rope(grid, *size) for size in sizes),
        (_norm(grid, batch * (gamma + 1)) for batch, gamma in sizes),
        (_silu(grid, batch * (gamma + 1)) for batch, gamma in sizes),
        (_mask(grid, *size) for size in sizes),
        (_advance(grid, *size) for size in sizes),
    ]


def _randn(grid: Grid, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=grid.device).to(grid.dtype)


def _behind(batch: int, first: int, count: int, device: str, step: int = 1) -> torch.Tensor:
    slots = torch.arange(first, first + step * count, step)
    return ints(slots.expand(batch, -1).contiguous(), device)


# ---------------------------------------------------------------------------- attention
def _attention(grid: Grid, batch: int, gamma: int, prefix: int) -> Case:
    """A chain of gamma + 1 tokens behind the prefix."""
    nodes = gamma + 1
    slots = prefix + nodes

    def make() -> Inputs:
        parents = _behind(batch, -1, nodes, grid.device)
        return {
            "q": _randn(grid, batch, nodes, Q_HEADS, DIM),
            "cache": _randn(grid, 2, batch, KV_HEADS, slots, DIM),
            "length": full(batch, prefix, grid.device, torch.int32),
            "bits": ops.tree_mask(parents).bits,
            "mask": torch.ones(nodes, slots, dtype=torch.bool, device=grid.device).tril(prefix),
        }

    def ours(x: Inputs) -> object:
        return ops.tree_attention(x["q"], x["cache"], x["length"], x["bits"])

    elements = 2 * batch * KV_HEADS * slots + 2 * batch * nodes * Q_HEADS
    size = f"B={batch} N={nodes} prefix={prefix}"
    moved = elements * DIM * grid.dtype.itemsize
    return Case("tree_attention", size, moved, make, ours, plain_attention)


def plain_attention(x: Inputs) -> object:
    """PyTorch's own, with a dense mask."""
    key, value = x["cache"][0], x["cache"][1]
    heads = x["q"].transpose(1, 2)
    return F.scaled_dot_product_attention(heads, key, value, attn_mask=x["mask"], enable_gqa=True)


def _mask(grid: Grid, batch: int, gamma: int) -> Case:
    """Eight branches of gamma tokens."""
    nodes, width = 8 * gamma, 8
    words = (nodes + 31) // 32

    def make() -> Inputs:
        parents = torch.arange(nodes) - width
        parents = ints(parents.clamp(min=-1).expand(batch, -1).contiguous(), grid.device)
        return {"parents": parents, "rows": parents.long() + 1}

    def ours(x: Inputs) -> object:
        return ops.tree_mask(x["parents"])

    moved = batch * nodes * 4 * (2 + words)
    return Case("tree_mask", f"B={batch} N={nodes}", moved, make, ours, plain_mask)


def plain_mask(x: Inputs) -> object:
    """The parent relation squared until it is closed, then packed."""
    rows = x["rows"]
    batch, nodes = rows.shape
    start = torch.zeros(batch, nodes, nodes + 1, device=rows.device)
    start = start.scatter(2, rows.unsqueeze(2), 1.0)[..., 1:]
    closed = start + torch.eye(nodes, device=rows.device)
    for _ in range((nodes - 1).bit_length()):
        closed = (closed @ closed).clamp(max=1.0)
    bits = F.pad(closed, (0, -nodes % 32)).view(batch, nodes, -1, 32).long()
    packed = (bits << torch.arange(32, device=rows.device)).sum(-1).int()
    return packed, closed.sum(-1).int() - 1


# ---------------------------------------------------------------------------- the cache
def _commit(grid: Grid, batch: int, gamma: int) -> Case:
    """Every second of 2 gamma slots, keys and values of all layers of a 7B model."""
    heads, slots = 32, 128
    first = slots // 2

    def make() -> Inputs:
        return {
            "cache": _randn(grid, grid.layers, 2, batch, heads, slots, DIM),
            "source": _behind(batch, first + 1, gamma, grid.device, step=2),
            "start": full(batch, first, grid.device, torch.int32),
            "length": full(batch, gamma, grid.device, torch.int32),
            "rows": torch.arange(batch, device=grid.device).unsqueeze(1),
            "from": _behind(batch, first + 1, gamma, grid.device, step=2).long(),
            "to": _behind(batch, first, gamma, grid.device).long(),
        }

    def ours(x: Inputs) -> None:
        ops.kv_commit(x["cache"], x["source"], x["start"], x["length"])

    moved = 2 * grid.layers * 2 * batch * heads * gamma * DIM * grid.dtype.itemsize
    size = f"L={grid.layers} B={batch} M={gamma}"
    return Case("kv_commit", size, moved, make, ours, plain_commit)


def plain_commit(x: Inputs) -> object:
    """An indexed copy: gathered, then scattered."""
    cache, rows = x["cache"], x["rows"]
    cache[:, :, rows, :, x["to"]] = cache[:, :, rows, :, x["from"]]
    return cache


def _kv_write(grid: Grid, batch: int, gamma: int) -> Case:
    nodes = gamma + 1

    def make() -> Inputs:
        slots = _behind(batch, SLOTS // 2, nodes, grid.device)
        return {
            "key": _randn(grid, batch, nodes, KV_HEADS, DIM),
            "value": _randn(grid, batch, nodes, KV_HEADS, DIM),
            "cache": _randn(grid, 2, batch, KV_HEADS, SLOTS, DIM),
            "slots": slots,
            "to": slots.long(),
            "rows": torch.arange(batch, device=grid.device).unsqueeze(1),
        }

    def ours(x: Inputs) -> None:
        ops.kv_write(x["key"], x["value"], x["slots"], x["cache"])

    moved = 2 * 2 * batch * nodes * KV_HEADS * DIM * grid.dtype.itemsize
    return Case("kv_write", f"B={batch} N={nodes}", moved, make, ours, plain_kv_write)


def plain_kv_write(x: Inputs) -> object:
    """Two indexed assignments."""
    cache, rows = x["cache"], x["rows"]
    cache[0][rows, :, x["to"]] = x["key"]
    cache[1][rows, :, x["to"]] = x["value"]
    return cache


def _rope(grid: Grid, batch: int, gamma: int) -> Case:
    nodes = gamma + 1
    angles = torch.outer(torch.arange(SLOTS), 1e4 ** (-torch.arange(0, DIM, 2) / DIM))
    cos, sin = angles.cos().to(grid.device), angles.sin().to(grid.device)

    def make() -> Inputs:
        slots = _behind(batch, SLOTS // 2, nodes, grid.device)
        return {
            "qkv": _randn(grid, batch, nodes, (Q_HEADS + 2 * KV_HEADS) * DIM),
            "cache": _randn(grid, 2, batch, KV_HEADS, SLOTS, DIM),
            "cos": cos,
            "sin": sin,
            "slots": slots,
            "to": slots.long(),
            "rows": torch.arange(batch, device=grid.device).unsqueeze(1),
        }

    def ours(x: Inputs) -> object:
        return ops.rope_kv_write(
            x["qkv"], x["cos"], x["sin"], x["slots"], x["slots"], x["cache"], Q_HEADS
        )

    moved = 2 * batch * nodes * (Q_HEADS + 2 * KV_HEADS) * DIM * grid.dtype.itemsize
    return Case("rope_kv_write", f"B={batch} N={nodes}", moved, make, ours, plain_rope)


def plain_rope(x: Inputs) -> object:
    """Split, rotate, two indexed assignments."""
    cache, rows, to = x["cache"], x["rows"], x["to"]
    batch, nodes, _ = x["qkv"].shape
    heads = x["qkv"].view(batch, nodes, -1, DIM)
    q, key, value = heads.split([Q_HEADS, KV_HEADS, KV_HEADS], 2)
    cos, sin = x["cos"][to].unsqueeze(2), x["sin"][to].unsqueeze(2)
    cache[0][rows, :, to] = _rotated(key, cos, sin)
    cache[1][rows, :, to] = value
    return _rotated(q, cos, sin)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


# ---------------------------------------------------------------------------- around the products
def _norm(grid: Grid, rows: int) -> Case:
    width = grid.width

    def make() -> Inputs:
        return {
            "x": _randn(grid, rows, width),
            "delta": 1e-3 * _randn(grid, rows, width),
            "weight": _randn(grid, width),
        }

    def ours(x: Inputs) -> object:
        return ops.add_rms_norm(x["x"], x["weight"], x["delta"], eps=1e-5)

    moved = 4 * rows * width * grid.dtype.itemsize
    return Case("add_rms_norm", f"rows={rows} d={width}", moved, make, ours, plain_norm)


def plain_norm(x: Inputs) -> object:
    """Add in place, then PyTorch's own norm."""
    return F.rms_norm(x["x"].add_(x["delta"]), x["weight"].shape, x["weight"], 1e-5)


def _silu(grid: Grid, rows: int) -> Case:
    width = 7 * grid.width // 2

    def make() -> Inputs:
        return {"gate_up": _randn(grid, rows, 2 * width)}

    def ours(x: Inputs) -> object:
        return ops.silu_mul(x["gate_up"])

    moved = 3 * rows * width * grid.dtype.itemsize
    return Case("silu_mul", f"rows={rows} F={width}", moved, make, ours, plain_silu)


def plain_silu(x: Inputs) -> object:
    """Of the two halves."""
    gate, up = x["gate_up"].chunk(2, -1)
    return F.silu(gate) * up


# ---------------------------------------------------------------------------- between rounds
def _advance(grid: Grid, batch: int, gamma: int) -> Case:
    """A branch survived; a call appends one token, and there is room for all calls."""
    branches, room = 6, 4096

    def make() -> Inputs:
        state = RoundState.empty(batch, gamma, room, grid.device)
        state.tokens.random_(0, 32_000)
        state.length.fill_(room // 2)
        state.chain.random_(0, 32_000)
        state.chain_length.fill_(gamma)
        return {
            "state": state,
            "tokens": state.tokens,
            "chain": state.chain,
            "length": state.length,
            "accepted": full(batch, 0, grid.device, torch.int32),
            "next": ints(torch.randint(32_000, (batch,)), grid.device),
            "survivor": ints(torch.randint(branches, (batch,)), grid.device),
            "drafted": ints(torch.randint(32_000, (batch, gamma, branches)), grid.device),
            "confidence": torch.rand(batch, gamma, branches, device=grid.device),
        }

    def ours(x: Inputs) -> None:
        ops.advance(
            x["state"], x["accepted"], x["next"], x["survivor"], x["drafted"], x["confidence"],
            epsilon=0.1,
        )  # fmt: skip

    moved = size_of(*(make()[name] for name in ("chain", "drafted", "confidence"))) + 16 * batch
    return Case("advance", f"B={batch} G={gamma} K={branches}", moved, make, ours, plain_advance)


def plain_advance(x: Inputs) -> object:
    """Append, choose the branch, cut it at the first low confidence; no report, no slots."""
    gamma, length = x["chain"].shape[1], x["length"].long().unsqueeze(1)
    offsets = torch.arange(gamma + 1, device=length.device)
    appended = torch.where(
        offsets < x["accepted"].unsqueeze(1), F.pad(x["chain"], (0, 1)), x["next"].unsqueeze(1)
    )
    tokens = x["tokens"].scatter_(1, length + offsets, appended.long())
    at = x["survivor"].long().view(-1, 1, 1).expand(-1, gamma, 1)
    sure = x["confidence"].gather(2, at).squeeze(2) >= 0.1
    kept = sure.int().cumprod(1)
    chain = x["drafted"].gather(2, at).squeeze(2) * kept
    count = x["length"] + x["accepted"] + 1
    target_inputs = torch.cat([x["next"].unsqueeze(1), chain], 1)
    return tokens, chain, count, target_inputs, count + kept.sum(1)
