"""Rounds whose state lives on the device: ``advance`` between two of them, and ``stopwatch``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import _C
from ._common import Backend, TensorLike

REPORT_HEAD = 6


@dataclass
class RoundState:
    """What one round leaves for the next, all on one device; batch 1 or more.

    ``tokens [B, T]`` int64 with ``length [B]`` committed ones (at least 2); ``chain [B, G]`` and
    ``chain_length [B]``: drafted tokens to be verified. ``commit_*``: what ``kv_commit`` is to move
    in the draft's cache. ``target_inputs [B, G+1]`` and ``draft_inputs [B, 2]`` int64: what next
    forwards read (the draft's: the last two tokens of X + chain; its cache holds all but the
    last); ``target_prefix [B]`` and ``branch_point [B]``: where. ``report [R, B, 6 + G]``: row
    ``round % R`` holds accepted (-1: bad row), verified, survivor, next token, kept, branches, and
    the chain as it was verified. int32 where nothing else is said.
    """

    tokens: torch.Tensor
    length: torch.Tensor
    chain: torch.Tensor
    chain_length: torch.Tensor
    commit_slots: torch.Tensor
    commit_start: torch.Tensor
    commit_length: torch.Tensor
    target_inputs: torch.Tensor
    draft_inputs: torch.Tensor
    target_prefix: torch.Tensor
    branch_point: torch.Tensor
    round: torch.Tensor
    report: torch.Tensor

    @classmethod
    def empty(
        cls,
        batch: int,
        gamma: int,
        room: int,
        device: torch.device | str = "cpu",
        report_rows: int = 8,
    ) -> RoundState:
        """All zeros: no tokens yet."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            tokens=zeros(batch, room, dtype=torch.int64),
            length=zeros(batch),
            chain=zeros(batch, gamma),
            chain_length=zeros(batch),
            commit_slots=zeros(batch, gamma),
            commit_start=zeros(batch),
            commit_length=zeros(batch),
            target_inputs=zeros(batch, gamma + 1, dtype=torch.int64),
            draft_inputs=zeros(batch, 2, dtype=torch.int64),
            target_prefix=zeros(batch),
            branch_point=zeros(batch),
            round=zeros(1, dtype=torch.int64),
            report=zeros(report_rows, batch, gamma + REPORT_HEAD),
        )


def advance(
    state: RoundState,
    num_accepted: TensorLike,
    next_token: TensorLike,
    survivor: TensorLike,
    drafted: TensorLike,
    confidence: TensorLike,
    *,
    epsilon: float,
    keep: TensorLike | None = None,
    num_branches: TensorLike | None = None,
    backend: Backend | None = None,
    stream: int | None = None,
) -> None:
    """Commits what ``verify`` decided and makes the next chain; changes ``state`` in place.

    Args:
        num_accepted, next_token, survivor: ``[B]`` int32, as ``verify`` gives them.
        drafted, confidence: ``[B, G, K]`` int32 and float32: what was drafted behind the branches,
            step by step, and the largest probability of the row each token was drawn from. K = 0:
            there are no branches.
        epsilon: a kept branch ends before the first confidence below it.
        keep: ``[B]`` int32, H-RAD's class: 0 nothing, 1 by confidence, 2 all; None: 1.
        num_branches: ``[B]`` int32 or None, for the report.
        backend, stream: as for ``kv_commit``; on "cuda" values are not checked.

    A bad row (``num_accepted`` -1) and a row whose tokens do not fit leave that row's state as it
    was.

    Raises:
        ValueError, TypeError: an argument does not fit; nothing has been written then.
        RuntimeError: the backend is not compiled in, or there is no driver.

    SpecBranch (arXiv 2506.01979), its posterior drafting, without a host in between.
    """
    _C.advance(
        (num_accepted, next_token, survivor),
        (num_branches, drafted, confidence, keep),
        epsilon,
        (state.tokens, state.length, state.chain, state.chain_length),
        (state.commit_slots, state.commit_start, state.commit_length),
        (state.target_inputs, state.draft_inputs, state.target_prefix, state.branch_point),
        state.round,
        state.report,
        backend,
        stream,
    )


def stopwatch(
    times: TensorLike,
    *,
    start: bool,
    backend: Backend | None = None,
    stream: int | None = None,
) -> None:
    """Begins (``start``) or ends a stretch of work whose time is added up where it runs.

    Between the two calls lies what was launched in between on the same stream, its waits for others
    included. Unlike events it can be captured in a graph that is replayed before it is read.

    Args:
        times: ``[2]`` int64 nanoseconds, changed in place: the sum of all stretches that have
            ended, and when the present one began.
        start: whether a stretch begins.
        backend, stream: as for ``kv_commit``.

    Raises:
        ValueError, TypeError: an argument does not fit; nothing has been written then.
        RuntimeError: the backend is not compiled in, or there is no driver.

    ``%globaltimer`` of the PTX instruction set on "cuda", a steady clock elsewhere.
    """
    _C.stopwatch(times, start, backend, stream)
