"""Cases of the ops that read rows of logits.

The compositions draw as engines do that do not want to wait for the device (``torch.multinomial``
does): the argmax of probabilities over exponential noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from kernel_cases import Case, Grid, Inputs, full, ints

from specbranch import ops

TEMPERATURE = 0.7
TOP_K, TOP_P, NUM_BRANCHES = 50, 0.9, 6


def families(grid: Grid) -> list[Iterator[Case]]:
    """One iterator an op."""
    rows = list(itertools.product(grid.vocabs, grid.batches))
    return [
        (
            _verify(grid, *size)
            for size in itertools.product(grid.vocabs, grid.batches, grid.gammas)
        ),
        (_tree(grid, *size) for size in itertools.product(grid.vocabs, grid.batches, grid.gammas)),
        (_sample(grid, *size) for size in rows),
        (_cutoff(grid, *size, top_k=TOP_K) for size in rows),
        (_cutoff(grid, *size, top_k=0) for size in rows),
        (_branches(grid, *size) for size in rows),
        (_verify(grid, *size, 8, coupled=True) for size in rows),
    ]


def _probs(logits: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits.float() / TEMPERATURE, -1)


def _draw(probs: torch.Tensor) -> torch.Tensor:
    return (probs / torch.empty_like(probs).exponential_(1.0)).argmax(-1)


def _logits(grid: Grid, *shape: int) -> torch.Tensor:
    return (3 * torch.randn(*shape, device=grid.device)).to(grid.dtype)


def _row_params(grid: Grid, batch: int) -> Inputs:
    return {
        "temperature": full(batch, TEMPERATURE, grid.device, torch.float32),
        "seed": torch.randint(1 << 40, (batch,), device=grid.device),
        "position": torch.randint(1 << 16, (batch,), device=grid.device),
    }


# ---------------------------------------------------------------------------- one row
def _sample(grid: Grid, vocab: int, batch: int) -> Case:
    lane = torch.zeros(batch, dtype=torch.int32, device=grid.device)

    def ours(x: Inputs) -> object:
        return ops.sample(x["logits"], x["temperature"], x["seed"], x["position"], lane=lane)

    def make() -> Inputs:
        return {"logits": _logits(grid, batch, vocab)} | _row_params(grid, batch)

    moved = batch * vocab * grid.dtype.itemsize
    return Case("sample", f"B={batch} V={vocab}", moved, make, ours, plain_sample)


def plain_sample(x: Inputs) -> object:
    """Token, its probability, the largest one, entropy."""
    log_probs = torch.log_softmax(x["logits"].float() / TEMPERATURE, -1)
    probs = log_probs.exp()
    token = _draw(probs)
    chosen = probs.gather(1, token.unsqueeze(1))
    return token, chosen, probs.amax(-1), -(probs * log_probs).sum(-1)


def _cutoff(grid: Grid, vocab: int, batch: int, *, top_k: int) -> Case:
    def make() -> Inputs:
        # "kept": only where a peer has a top-k to apply.
        kept = {"kept": full(batch, top_k, grid.device, torch.int32)} if top_k else {}
        return kept | {
            "logits": _logits(grid, batch, vocab),
            "temperature": full(batch, TEMPERATURE, grid.device, torch.float32),
            "top_k": full(batch, top_k, grid.device, torch.int32),
            "top_p": full(batch, TOP_P, grid.device, torch.float32),
            "min_p": full(batch, 0.0, grid.device, torch.float32),
        }

    def ours(x: Inputs) -> object:
        return ops.logit_cutoff(x["logits"], x["temperature"], x["top_k"], x["top_p"], x["min_p"])

    what = f"top-k {top_k}, top-p" if top_k else "top-p"
    moved = batch * vocab * grid.dtype.itemsize
    plain = plain_top_k_top_p if top_k else plain_top_p
    return Case("logit_cutoff", f"{what} B={batch} V={vocab}", moved, make, ours, plain)


def plain_top_k_top_p(x: Inputs) -> object:
    """The smallest logit kept; k is known to the host, so that no sort is needed."""
    return _smallest_kept(x["logits"].float().topk(TOP_K, -1).values)


def plain_top_p(x: Inputs) -> object:
    """The same over the whole vocabulary, sorted."""
    return _smallest_kept(x["logits"].float().sort(-1, descending=True).values)


def _smallest_kept(ordered: torch.Tensor) -> torch.Tensor:
    probs = torch.softmax(ordered / TEMPERATURE, -1)
    kept = probs.cumsum(-1) - probs < TOP_P
    return ordered.gather(1, kept.sum(-1, keepdim=True) - 1)


def _branches(grid: Grid, vocab: int, batch: int) -> Case:
    def make() -> Inputs:
        return {"logits": _logits(grid, batch, vocab)} | _row_params(grid, batch)

    def ours(x: Inputs) -> object:
        return ops.branch_topk(x["logits"], NUM_BRANCHES, x["temperature"])

    moved = batch * vocab * grid.dtype.itemsize
    size = f"k={NUM_BRANCHES} B={batch} V={vocab}"
    return Case("branch_topk", size, moved, make, ours, plain_branches)


def plain_branches(x: Inputs) -> object:
    """Candidates, how many of them, and the confidence that says so."""
    confidence = _probs(x["logits"]).amax(-1)
    count = (NUM_BRANCHES * (1 - confidence)).floor().clamp(min=1).int()
    return x["logits"].topk(NUM_BRANCHES, -1).indices, count, confidence


# ---------------------------------------------------------------------------- verification
def _verify(grid: Grid, vocab: int, batch: int, gamma: int, *, coupled: bool = False) -> Case:
    """A chain that is accepted as a whole, so that every row is read."""
    draw = "gumbel" if coupled else "inverse_cdf"

    def make() -> Inputs:
        draft = _logits(grid, batch, gamma, vocab)
        target = torch.cat([draft, _logits(grid, batch, 1, vocab)], 1)
        params = _row_params(grid, batch)
        tokens = _coupled_tokens(draft, params) if coupled else _draw(_probs(draft))
        return params | {
            "target": target,
            "draft": None if coupled else draft,
            "tokens": tokens.long(),
            "chain": tokens.int(),
            "length": full(batch, gamma, grid.device, torch.int32),
            "branches": torch.zeros(batch, 0, dtype=torch.int32, device=grid.device),
            "count": full(batch, 0, grid.device, torch.int32),
        }

    def ours(x: Inputs) -> object:
        return ops.verify(
            x["target"], x["draft"], x["chain"], x["length"], x["branches"], x["count"],
            x["temperature"], x["seed"], x["position"], draw=draw,
        )  # fmt: skip

    num_rows = gamma + 1 if coupled else 2 * gamma + 1
    moved = batch * num_rows * vocab * grid.dtype.itemsize
    size = f"{'coupled ' if coupled else ''}B={batch} G={gamma} V={vocab}"
    return Case("verify", size, moved, make, ours, plain_coupled if coupled else plain_verify)


def _coupled_tokens(logits: torch.Tensor, params: Inputs) -> torch.Tensor:
    """What the target will draw at each position: ``[B, G]``."""
    columns = [
        ops.sample(
            logits[:, step].contiguous(), params["temperature"], params["seed"],
            params["position"] + step, draw="gumbel",
        ).token
        for step in range(logits.shape[1])
    ]  # fmt: skip
    return torch.stack(columns, 1)


def plain_verify(x: Inputs) -> object:
    """Leviathan et al.: accept by ratio, draw the next token from the residual or the last row."""
    target, draft = _probs(x["target"]), _probs(x["draft"])
    gamma, at = draft.shape[1], x["tokens"].unsqueeze(-1)
    ratio = target[:, :gamma].gather(2, at) / draft.gather(2, at)
    accepted = (torch.rand_like(ratio) < ratio).squeeze(-1).int().cumprod(1).sum(1)
    row = accepted.view(-1, 1, 1).expand(-1, 1, draft.shape[2])
    last = target.gather(1, row).squeeze(1)
    drafted = draft.gather(1, row.clamp(max=gamma - 1)).squeeze(1)
    rejected = (accepted < gamma).unsqueeze(1)
    return accepted, _draw(torch.where(rejected, (last - drafted).clamp(min=0), last))


def plain_coupled(x: Inputs) -> object:
    """One draw a row; the chain holds as far as it equals the draws."""
    drawn = _draw(_probs(x["target"]))
    accepted = (drawn[:, :-1] == x["tokens"]).int().cumprod(1).sum(1)
    return accepted, drawn.gather(1, accepted.unsqueeze(1))


def _tree(grid: Grid, vocab: int, batch: int, gamma: int) -> Case:
    """A path of ``gamma`` right nodes, each with a wrong sibling; coupled."""
    parents = [-1 if level == 0 else 2 * level - 2 for level in range(gamma) for _ in range(2)]
    shared = ints([parents] * batch, grid.device)
    ancestors = ops.dense_mask(ops.tree_mask(shared).bits, 2 * gamma)

    def make() -> Inputs:
        target, params = _logits(grid, batch, 2 * gamma + 1, vocab), _row_params(grid, batch)
        on_path = torch.tensor([0, *range(1, 2 * gamma - 1, 2)], device=grid.device)
        right = _coupled_tokens(target[:, on_path], params)
        tokens = torch.stack([right, (right + 1) % vocab], 2).view(batch, -1)
        return (
            params
            | {"target": target, "chain": tokens.int(), "tokens": tokens.long()}
            | {
                "parents": shared,
                "rows": shared.long() + 1,
                "ancestors": ancestors,
                "count": full(batch, 2 * gamma, grid.device, torch.int32),
            }
        )

    def ours(x: Inputs) -> object:
        return ops.verify_tree(
            x["target"], None, x["chain"], x["parents"], x["count"], x["temperature"], x["seed"],
            x["position"], draw="gumbel",
        )  # fmt: skip

    moved = batch * (gamma + 1) * vocab * grid.dtype.itemsize
    size = f"path {gamma} of {2 * gamma} B={batch} V={vocab}"
    return Case("verify_tree", size, moved, make, ours, plain_tree)


def plain_tree(x: Inputs) -> object:
    """One draw a row; a node is accepted where it and all its ancestors equal the draws."""
    drawn = _draw(_probs(x["target"]))
    wrong = drawn.gather(1, x["rows"]) != x["tokens"]
    accepted = ~(x["ancestors"] & wrong.unsqueeze(1)).any(2)
    depth = accepted * x["ancestors"].sum(2)
    last = torch.where(accepted.any(1), depth.argmax(1) + 1, 0)
    return accepted.sum(1), accepted, drawn.gather(1, last.unsqueeze(1))
