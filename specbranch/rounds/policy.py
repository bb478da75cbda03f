"""Rounds on the device as a policy of the engine."""

from __future__ import annotations

import time

import torch

from ..ops.rounds import REPORT_HEAD
from ..policies.ar import Autoregressive
from ..session import Committed, Session
from ..stats import Stats
from .runner import Runner
from .specbranch import SpecBranchProgram


class DeviceRounds:
    """A policy whose rounds run on the device; the engine makes one a request.

    Args:
        runner: of a program whose states are the session's.
    """

    needs_draft = True
    overlaps = False

    def __init__(self, runner: Runner) -> None:
        self.runner, self.program = runner, runner.program
        self._launched = self._read = 0
        self._target_seconds = 0.0

    def round(self, session: Session) -> Committed:
        """Launch what is due and wait for the next round's report."""
        if self._launched == 0:
            if session.length < 2:  # the device's bookkeeping starts from two tokens
                return Autoregressive().round(session)
            self._start(session)
        started = time.perf_counter()
        while self._launched - self._read < self.runner.ahead:
            self.runner.launch()
            self._launched += 1
        waiting = time.perf_counter()
        row = self.runner.report(self._read)
        waited = time.perf_counter() - waiting
        self._read += 1
        committed = self._committed(session, row)
        self._count_target_seconds(session)
        session.stats.host_seconds += time.perf_counter() - started - waited
        return committed

    def _start(self, session: Session) -> None:
        tokens = session.tokens
        if session.has_draft:
            missing = tokens[session.draft.length : -1]
            session.draft.prefill(torch.tensor(missing, dtype=torch.int64))
        self.runner.begin(tokens, session.params)

    def _count_target_seconds(self, session: Session) -> None:
        before, self._target_seconds = self._target_seconds, self.runner.target_seconds()
        session.stats.target_seconds += self._target_seconds - before

    def _committed(self, session: Session, row: list[int]) -> Committed:
        """What a round's report adds to the request."""
        accepted, verified, survivor, token, kept, branches = row[:REPORT_HEAD]
        if accepted < 0:
            raise ValueError(
                f"target or draft gave NaN logits between positions {session.length} and "
                f"{session.length + verified}"
            )
        last = _origin(self.program.plain, accepted < verified, survivor)
        tokens = [*row[REPORT_HEAD : REPORT_HEAD + accepted], token]
        session.tokens += tokens
        session.stats.count_round(verified, accepted, len(tokens))
        self._count_drafts(session.stats, accepted == verified, survivor, kept, branches)
        return Committed(tokens, ["chain"] * accepted + [last], verified, survivor)

    def _count_drafts(
        self, stats: Stats, reached: bool, survivor: int, kept: int, branches: int
    ) -> None:
        """The counters of forwards and drafts that a round of ``policies/`` keeps."""
        gamma, hit = self.program.gamma, survivor >= 0
        stats.target_forwards += 1
        if isinstance(self.program, SpecBranchProgram):
            stats.draft_forwards += 1 + gamma
            stats.count_branches(branches, 1 + gamma, reached=reached, hit=hit)
            stats.pruned += gamma - kept if hit else 0
        elif not self.program.plain:
            stats.draft_forwards += gamma
            stats.drafted += gamma


def _origin(plain: bool, rejected: bool, survivor: int) -> str:
    if plain:
        return "plain"
    if rejected:
        return "recovered"
    return "branch" if survivor >= 0 else "bonus"
