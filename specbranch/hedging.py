"""Branches at several points of a chain: what the draft must read, grow and keep for them.

While the target reads ``[X[-1], c_1 .. c_m]``, the draft reads the same as pending nodes of its
tree; a branch at point j is a child of the node of c_j and does not see the chain behind it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from . import ops
from .drafting import nan_draft, take_step
from .session import Chain, Growth, Session
from .timeline import DRAFT


@dataclass(frozen=True)
class Hedge:
    """A token that the target may give after ``after`` accepted chain tokens."""

    after: int
    token: int


@dataclass(frozen=True)
class HedgePoints:
    """For each of the m + 1 points of a chain: the draft's confidence and its best tokens."""

    confidence: list[float]
    candidates: list[list[int]]


@dataclass
class Fan(Growth):
    """Branches behind several points of a chain, and what was drafted behind each head."""

    heads: list[Hedge]

    def find(self, head: Hedge) -> int:
        """The branch with this head, -1: none."""
        return self.heads.index(head) if head in self.heads else -1


def read_points(session: Session, chain: Chain) -> HedgePoints:
    """Let the draft read the text and the chain, as pending nodes that branches may grow from."""
    started, sampler, count = time.perf_counter(), session.draft_sampler, len(chain) + 1
    unread = torch.tensor(session.unread(chain.tokens), dtype=torch.int64)
    session.stats.draft_forwards += 1
    logits = session.draft.forward(unread).logits[-count:]
    session.note(DRAFT, "read", started, rows=len(unread))
    sampler.position[:count] = torch.arange(session.length, session.length + count)
    # branch_topk offers more the less sure a row is; this is enough for any row's share.
    found = ops.branch_topk(
        logits,
        6 * session.settings.k_max,
        sampler.temperature[:count],
        cutoff=sampler.cut(logits),
        seed=sampler.seed[:count],
        position=sampler.position[:count],
        draw=session.settings.draw,
    )
    sizes = found.num_branches.tolist()
    if 0 in sizes:
        raise nan_draft(session.length + sizes.index(0))
    rows = zip(found.candidates.tolist(), sizes, strict=True)
    return HedgePoints(found.confidence.tolist(), [row[:size] for row, size in rows])


def grow_fan(session: Session, chain: Chain, heads: Sequence[Hedge]) -> Fan:
    """Draft up to gamma tokens behind each head, all branches in one forward a step."""
    draft, width, out = session.draft, len(heads), session.next_buffers()
    room = max(0, min(session.settings.gamma, session.total - session.length - len(chain) - 2))
    last = draft.num_nodes - 1 - len(chain)  # the node of the last committed token
    inputs = torch.tensor([head.token for head in heads], dtype=torch.int64)
    parents = [last + head.after for head in heads]
    first = torch.tensor([session.length + head.after + 1 for head in heads])
    started = time.perf_counter()
    for step in range(room):
        nodes = range(draft.num_nodes, draft.num_nodes + width)
        drawn = take_step(
            draft, inputs, parents, width, step, session.draft_sampler, first + step, out
        )
        inputs, parents = drawn.token, list(nodes)
        if int(drawn.token.min()) < 0:
            raise ValueError(f"draft gave NaN logits for a position behind {session.length}")
    session.stats.draft_forwards += room
    session.note(DRAFT, "branches", started, rows=width, forwards=room)
    out.fetch()
    return Fan(
        heads=list(heads),
        tokens=out.tokens[:room, :width],
        confidence=out.confidence[:room, :width],
        logits=out.logits[:room, :width],
        cutoff=out.cutoff[:room, :width] if session.params.has_cutoff else None,
    )


def keep_read(session: Session, num_accepted: int) -> None:
    """Of the draft's pending nodes, keep the text and the accepted chain tokens."""
    session.draft.commit(range(session.length - session.draft.length + num_accepted))
