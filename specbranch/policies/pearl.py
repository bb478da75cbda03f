"""PEARL (arXiv 2408.11850): the draft never waits for the verdict on its last token.

While the target reads the chain, the draft goes on for gamma tokens as if all of it were accepted
("post-verify"). The row behind the chain judges the first of the new tokens in the same round.
After a rejection the chain is empty and the target judges the first new token while the others are
being drafted ("pre-verify"). Both are one round: pre-verify is post-verify with an empty chain.

Losslessness. A round judges ``c_1 .. c_m, d_1``, the chain and the first token drafted meanwhile,
with the rows ``P_0 .. P_m`` of one target forward. Each token was drawn from the Q that the draft
gives after the tokens before it, whatever the verdicts, and is judged by ``min(1, P / Q)`` or
replaced by a draw from the residual, as in any chain of m + 1 tokens. Where all are accepted the
target has no row behind ``d_1``: no bonus token is drawn, and ``d_2 ..`` are drafts that follow the
committed text, the next chain. A bonus token drawn from ``P_m`` would be a second draw for the
place of ``d_1``; to commit ``d_1`` there unjudged would bias the output. After a rejection all that
was drafted behind it is dropped, and drafted again after the recovered token.
"""

from __future__ import annotations

from ..session import Chain, Committed, Session


class Pearl:
    """Parallel drafting with pre-verify and post-verify."""

    needs_draft = True
    overlaps = True

    def __init__(self) -> None:
        self._chain = Chain()  # empty: pre-verify

    def round(self, session: Session) -> Committed:
        """Verify and draft on at the same time, then judge and commit."""
        chain = self._chain
        target_logits, ahead = session.lanes.run(
            lambda: session.target_forward(chain),
            lambda: session.draft_ahead(chain),
        )
        first, rest = ahead.split(1)
        judged = chain + first
        verdict = session.verify_ahead(target_logits, judged)
        if verdict.num_accepted < len(judged):
            session.stats.rolled_back += len(rest)
            rest = Chain()
        self._chain = rest
        return session.commit(judged, verdict)
