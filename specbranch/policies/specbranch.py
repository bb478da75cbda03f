"""SpecBranch (arXiv 2506.01979): the draft grows branches while the target verifies the chain."""

from __future__ import annotations

from ..predictor import Keep, Predictor, num_kept
from ..session import Branches, Chain, Committed, Session, Verdict


class SpecBranch:
    """Hybrid drafting with branch parallelism.

    Args:
        predictor: H-RAD; None lets the draft's confidence decide alone.
    """

    needs_draft = True
    overlaps = True

    def __init__(self, predictor: Predictor | None = None) -> None:
        self.predictor = predictor
        self._chain: Chain | None = None  # None: the pipeline is empty

    def round(self, session: Session) -> Committed:
        """Branch stage on both lanes, then verify, commit and predict."""
        epsilon = session.settings.epsilon
        chain = self._chain
        if chain is None:
            chain = self._draft_stage(session)
        stop_below = epsilon if self.predictor is None else 0.0
        target_logits, branches = session.lanes.run(
            lambda: session.target_forward(chain),
            lambda: session.grow_branches(chain, stop_below=stop_below),
        )
        verdict = session.verify(target_logits, chain, branches)
        committed = session.commit(chain, verdict)
        self._chain = self._next_chain(session, branches, verdict, len(chain))
        return committed

    @property
    def chain_length(self) -> int:
        """Tokens that are drafted for the next round already."""
        return len(self._chain or ())

    def drop(self, session: Session) -> None:
        """Forget the next round's chain: another policy goes on from the committed text."""
        session.stats.pruned += self.chain_length
        # Not the last committed token either: what follows it must be asked for again.
        session.draft.rollback(min(session.draft.length, session.length - 1))
        self._chain = None

    def _draft_stage(self, session: Session) -> Chain:
        """After a rejection or a miss: draft alone (serial), or overlap at once with no chain."""
        if session.settings.draft_stage == "overlap":
            return Chain()
        return session.draft_chain(session.settings.epsilon)

    def _next_chain(
        self, session: Session, branches: Branches, verdict: Verdict, num_verified: int
    ) -> Chain | None:
        """Posterior drafting: how much of the surviving branch to trust."""
        stats, idx = session.stats, verdict.survivor
        reached = verdict.num_accepted == num_verified
        stats.count_branches(len(branches), 1 + branches.steps, reached=reached, hit=idx >= 0)
        if idx < 0:
            return None
        keep = Keep.CONFIDENT
        if self.predictor is not None:
            keep = self.predictor.predict(session.target_features(), verdict.next_token)
        kept = num_kept(keep, branches.confidence[:, idx].tolist(), session.settings.epsilon)
        stats.pruned += branches.steps - kept
        return session.keep_branch(branches, idx, kept)
