"""Speculative sampling (Leviathan et al. 2023, "SpS"): draft gamma tokens, then verify them."""

from __future__ import annotations

from ..session import Committed, Session


class SpeculativeSampling:
    """Draft and target take turns."""

    needs_draft = True
    overlaps = False

    def round(self, session: Session) -> Committed:
        """Draft, verify, commit."""
        chain = session.draft_chain()
        verdict = session.verify(session.target_forward(chain), chain)
        return session.commit(chain, verdict)
