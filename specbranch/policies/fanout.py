"""Fan-out: a fixed budget of branches, spread over the chain by where it is likely to break.

SpecBranch hedges one point, the one behind the chain; SSD (arXiv 2603.03251) hedges every point
with a fixed number of branches. Here ``k_max`` branches in all go where the draft expects the chain
to end: with a_i, the draft's confidence for the i-th chain token, as the predicted acceptance, the
chain ends before token j + 1 with probability ``a_1 .. a_j (1 - a_{j+1})``, and behind the last one
with what remains. A rejection in the middle of the chain, too, may then find the recovered
token among the candidates of its position, and what follows it drafted already.

Losslessness. The target's token after the accepted part, recovered or bonus, is drawn as ever and
committed whatever it is; a branch is kept if its head equals it. Its tokens were drawn from the
draft after the very text that is now committed: an ordinary chain. The trap is the budget. Where
the chain broke at c_j, all behind c_j is drafted again with the same random numbers, so whether
there was a branch must not depend on a token behind c_j. ``spread`` therefore goes from the front:
a position's share is settled by confidences up to its own, and what earlier positions leave over
goes on to later ones, never back. (The rejected token itself may be left out of the candidates: its
position is committed now, and its random numbers are not used again.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..hedging import Fan, Hedge, forget_chain, grow_fan, keep_read, read_points
from ..predictor import num_confident
from ..session import Chain, Committed, Session


class FanOut:
    """Branches at several points of the chain."""

    needs_draft = True
    overlaps = True
    # What reads and grows with the draft's own state; a replay has its own.
    read_points = staticmethod(read_points)
    grow_fan = staticmethod(grow_fan)
    keep_read = staticmethod(keep_read)
    forget_chain = staticmethod(forget_chain)

    def __init__(self) -> None:
        self._chain: Chain | None = None  # None: the pipeline is empty

    def round(self, session: Session) -> Committed:
        """Verify the chain and hedge it at the same time, commit, go on with what was ready."""
        chain = self._chain
        if chain is None:
            chain = self._draft_stage(session)
        target_logits, fan = session.lanes.run(
            lambda: session.target_forward(chain),
            lambda: self._hedge(session, chain),
        )
        verdict = session.verify(target_logits, chain)
        survivor = fan.find(Hedge(verdict.num_accepted, verdict.next_token))
        verdict = replace(verdict, survivor=survivor)
        self.keep_read(session, verdict.num_accepted)
        committed = session.commit(chain, verdict)
        self._chain = self._next_chain(session, fan, survivor)
        return committed

    def _draft_stage(self, session: Session) -> Chain:
        """After a miss: draft alone (serial), or hedge at once with no chain (overlap)."""
        if session.settings.draft_stage == "overlap":
            return Chain()
        chain = session.draft_chain(session.settings.epsilon)
        self.forget_chain(session)
        return chain

    def _hedge(self, session: Session, chain: Chain) -> Fan:
        """Read the chain with the draft, choose the heads, grow what follows them."""
        points = self.read_points(session, chain)
        heads: list[Hedge] = []
        for at, share in enumerate(spread(points.confidence, session.settings.k_max)):
            drafted = chain.tokens[at] if at < len(chain) else None
            others = [token for token in points.candidates[at] if token != drafted]
            heads += [Hedge(at, token) for token in others[:share]]
        return self.grow_fan(session, chain, heads)

    def _next_chain(self, session: Session, fan: Fan, survivor: int) -> Chain | None:
        """What is kept of the branch that was hit."""
        stats, hit = session.stats, survivor >= 0
        stats.count_branches(len(fan.heads), 1 + fan.steps, reached=True, hit=hit)
        if not hit:
            return None
        confidence = fan.confidence[:, survivor].tolist()
        kept = min(num_confident(confidence, session.settings.epsilon), session.chain_room())
        stats.pruned += fan.steps - kept
        return fan.chain(survivor, kept)


def spread(confidence: Sequence[float], budget: int) -> list[int]:
    """Branches for each of the m + 1 points of a chain, ``budget`` in all.

    ``confidence[j]``: the draft's largest probability for the token at point j; the last point is
    behind the chain and takes what is left. No share depends on a later confidence.
    """
    shares, reach, left = [], 1.0, budget
    for sure in confidence[:-1]:
        share = min(left - 1, round(budget * reach * (1.0 - sure)))
        shares.append(share)
        reach, left = reach * sure, left - share
    return [*shares, left]
