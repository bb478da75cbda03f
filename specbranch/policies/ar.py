"""Plain autoregressive decoding: one target forward a token. What everything else must equal."""

from __future__ import annotations

from ..session import Chain, Committed, Session


class Autoregressive:
    """The target alone."""

    needs_draft = False
    overlaps = False

    def round(self, session: Session) -> Committed:
        """One token."""
        chain = Chain()
        verdict = session.verify(session.target_forward(chain), chain)
        return session.commit(chain, verdict, plain=True)
