"""AdaEDL (arXiv 2410.18351): draft until the entropy says that acceptance is unlikely.

A drafted token is accepted with probability 1 - TV(P, Q), for which the paper gives the estimate
``1 - sqrt(factor * entropy(Q))``, a lower bound. Drafting stops before the first position where it
is below a threshold lambda, and lambda follows the acceptance that is observed: up where too little
is accepted (draft less), down otherwise.

Losslessness. The entropy is a function of Q, known before the token is drawn. Lambda may use what
was decided about earlier tokens, but nothing of the tokens behind a rejection, not even how many
there were: those positions are drafted again with the same random numbers, and how far the first
attempt got is a function of these. Hence the rate is accepted over judged tokens, which nothing
behind a rejection enters, and not accepted over drafted ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..session import Committed, Session


@dataclass(frozen=True)
class Adaption:
    """How lambda moves.

    Args:
        factor: of the entropy (nats) in the bound.
        target_rate: the acceptance rate that lambda steers to.
        step: how far lambda is pushed a round.
        keep_rate, keep_lambda: weights of the past in the two moving averages.
    """

    factor: float = 0.2
    target_rate: float = 0.9
    step: float = 0.01
    keep_rate: float = 0.5
    keep_lambda: float = 0.9


class AdaEdl:
    """Draft and target take turns; the draft length follows the draft's entropy.

    Lambda starts as the setting ``epsilon``.
    """

    needs_draft = True
    overlaps = False

    def __init__(self, adaption: Adaption | None = None) -> None:
        self.adaption = adaption or Adaption()
        self.threshold: float | None = None  # lambda; None: no round yet
        self._rate = self.adaption.target_rate

    def round(self, session: Session) -> Committed:
        """Draft while it is worth it, verify, commit, adapt."""
        threshold = session.settings.epsilon if self.threshold is None else self.threshold
        chain = session.draft_until(self.max_entropy(threshold))
        verdict = session.verify(session.target_forward(chain), chain)
        rejected = verdict.num_accepted < len(chain)
        num_judged = verdict.num_accepted + rejected
        self.threshold = self._adapted(threshold, verdict.num_accepted, num_judged)
        return session.commit(chain, verdict)

    def max_entropy(self, threshold: float) -> float:
        """The entropy at which the bound equals ``threshold``."""
        return (1.0 - threshold) ** 2 / self.adaption.factor

    def _adapted(self, threshold: float, num_accepted: int, num_judged: int) -> float:
        """The next lambda."""
        if not num_judged:
            return threshold
        how = self.adaption
        self._rate += (1.0 - how.keep_rate) * (num_accepted / num_judged - self._rate)
        push = how.step if self._rate < how.target_rate else -how.step
        return min(1.0, max(0.0, threshold + (1.0 - how.keep_lambda) * push))
