"""Verification of what was drafted: ``verify`` (a chain with branches), ``verify_tree`` (any tree).

Both keep the target's transformed distribution exactly (see ``sampling`` for what that is):

- ``draw="inverse_cdf"``, rejection sampling (Leviathan et al. 2023): accept token x when ``u *
  draft(x) < target(x)``, else draw from ``norm(max(0, target - draft))``; a branch survives when
  the target's own draw at the branch point equals it (SpecBranch, arXiv 2506.01979).
- ``draw="gumbel"``, coupled: the target's token at a position is the argmax of ``logits /
  temperature + noise(seed, position, token)``; a drafted token is right when it equals it. The
  committed sequence is then the one that the target alone gives with that seed.

At temperature 0 both match against the target's argmax and never read the draft's logits. Positions
are visited in order and nothing behind the first rejection is read; a NaN or +inf logit, or a row
of -inf, in what is read gives -1 in every output of that batch row.
"""

from __future__ import annotations

from typing import NamedTuple

from .. import _C
from ._common import Backend, TensorLike, new, runs_kernels, shape_of
from ._rows import is_gumbel, rows


class VerifyResult(NamedTuple):
    """What ``verify`` returns."""

    num_accepted: TensorLike  # [B] int32, before the first rejection; -1: bad row
    next_token: TensorLike  # [B] int32, recovered or bonus token; -1: bad row
    survivor: TensorLike  # [B] int32, the branch equal to next_token after a full chain, else -1


class VerifyTreeResult(NamedTuple):
    """What ``verify_tree`` returns."""

    num_accepted: TensorLike  # [B] int32, nodes on the accepted path; -1: bad row
    path: TensorLike  # [B, N] int32, accepted nodes from the root, -1 beyond
    next_token: TensorLike  # [B] int32, the target's token after the path; -1: bad row


def verify(
    target_logits: TensorLike,
    draft_logits: TensorLike | None,
    draft_tokens: TensorLike,
    chain_length: TensorLike,
    branch_tokens: TensorLike,
    num_branches: TensorLike,
    temperature: TensorLike | float,
    seed: TensorLike | int,
    position: TensorLike | int,
    *,
    target_cutoff: TensorLike | None = None,
    draft_cutoff: TensorLike | None = None,
    draw: str = "inverse_cdf",
    out: VerifyResult | tuple[TensorLike, ...] | None = None,
    workspace: TensorLike | None = None,
    backend: Backend | None = None,
    stream: int | None = None,
) -> VerifyResult:
    """Verify one chain a batch row, and match the branches behind it.

    ``target_logits [B, G+1, V]``: row i is the distribution after i chain tokens. ``draft_logits
    [B, G, V]``: row i is what ``draft_tokens[:, i]`` was sampled from (None where coupled or G =
    0). ``draft_tokens [B, G]``, ``chain_length [B]`` (0..G), ``branch_tokens [B, K]``,
    ``num_branches [B]`` (0..K): int32. ``position [B]``: absolute position of ``draft_tokens[:,
    0]``. ``target_cutoff [B, G+1]`` and ``draft_cutoff [B, G]``: float32, see ``logit_cutoff``.

    ``backend`` and ``stream``: as for ``kv_commit``. On "cuda" all arguments are on the device and
    values are not checked: lengths out of range are clipped, a drafted token out of range gives -1.
    The kernels want ``workspace``, uninitialised uint8, allocated here where it is None.
    """
    if out is None:
        batch = shape_of(target_logits, "target_logits", "[B, G+1, V]")[:1]
        out = VerifyResult(*(new(target_logits, batch, "int32") for _ in range(3)))
    result = out if isinstance(out, VerifyResult) else VerifyResult(*out)
    if workspace is None and runs_kernels(backend, target_logits):
        B, num_rows, V = shape_of(target_logits, "target_logits", "[B, G+1, V]")
        size = _C.verify_workspace_bytes(B, num_rows - 1, V, is_gumbel(draw))
        workspace = new(target_logits, (size,), "uint8")
    _C.verify(
        target_logits,
        draft_logits,
        draft_tokens,
        chain_length,
        branch_tokens,
        num_branches,
        rows("temperature", temperature, target_logits, "float32"),
        rows("seed", seed, target_logits, "int64"),
        rows("position", position, target_logits, "int64"),
        target_cutoff,
        draft_cutoff,
        is_gumbel(draw),
        *result,
        workspace,
        backend,
        stream,
    )
    return result


def verify_tree(
    target_logits: TensorLike,
    draft_logits: TensorLike | None,
    tokens: TensorLike,
    parents: TensorLike,
    num_nodes: TensorLike,
    temperature: TensorLike | float,
    seed: TensorLike | int,
    position: TensorLike | int,
    *,
    sampled: TensorLike | None = None,
    target_cutoff: TensorLike | None = None,
    draft_cutoff: TensorLike | None = None,
    draw: str = "inverse_cdf",
    out: VerifyTreeResult | tuple[TensorLike, ...] | None = None,
    workspace: TensorLike | None = None,
    backend: Backend | None = None,
    stream: int | None = None,
) -> VerifyTreeResult:
    """Walk a tree of drafted tokens from the root as far as the target agrees.

    ``target_logits [B, N+1, V]``: row 0 follows the committed prefix, row i+1 follows node i.
    ``draft_logits [B, N+1, V]``: row r is what the children of row r were sampled from (None where
    ``sampled`` is None or draw is "gumbel"). ``tokens [B, N]``, ``parents [B, N]`` (-1: root, else
    an earlier node), ``num_nodes [B]`` (0..N): int32. ``sampled [B, N]`` (uint8 or bool; None: all
    0) says which nodes were drawn from the draft row (siblings: independently, from the same row,
    verified in index order by multi-round rejection sampling) and which are deterministic
    candidates (matched against one draw of the target); the children of a node are of one kind.
    ``position [B]``: absolute position of the root's children. A chain gives the very decisions of
    ``verify``. ``workspace``, ``backend`` and ``stream``: as for ``verify``; on "cuda" a tree that
    does not hold what is said here gives a wrong path, or -1.
    """
    if out is None:
        batch = shape_of(target_logits, "target_logits", "[B, N+1, V]")[:1]
        width = shape_of(tokens, "tokens", "[B, N]")[1]
        out = VerifyTreeResult(
            new(target_logits, batch, "int32"),
            new(target_logits, (*batch, width), "int32"),
            new(target_logits, batch, "int32"),
        )
    result = out if isinstance(out, VerifyTreeResult) else VerifyTreeResult(*out)
    if workspace is None and runs_kernels(backend, target_logits):
        B, num_rows, V = shape_of(target_logits, "target_logits", "[B, N+1, V]")
        size = _C.verify_tree_workspace_bytes(B, num_rows - 1, V, is_gumbel(draw))
        workspace = new(target_logits, (size,), "uint8")
    _C.verify_tree(
        target_logits,
        draft_logits,
        tokens,
        parents,
        num_nodes,
        rows("temperature", temperature, target_logits, "float32"),
        rows("seed", seed, target_logits, "int64"),
        rows("position", position, target_logits, "int64"),
        sampled,
        target_cutoff,
        draft_cutoff,
        is_gumbel(draw),
        *result,
        workspace,
        backend,
        stream,
    )
    return result
