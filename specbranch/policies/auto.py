"""Moves between ``ar``, ``sps`` and ``specbranch``, their gamma and k, by what they cost and bring.

Measured online: the time of each model's forwards by their rows, the acceptance by position, the
branch hit rate. ``tuning.Tuner`` predicts every arm's speed from them; what an engine has learnt
serves its next requests.

Losslessness. Each round is one of a lossless policy, and where one arm follows another the draft
goes on from the committed text. Which arm runs depends on times, on tokens that the target has
judged and on what was known before they were drawn; on nothing behind a rejection, which is
drafted again with the same random numbers. That is why growing never ends early here: how many
steps it took would tell of such tokens, and enter by way of the time that they took. With
``verify="rejection"`` at a temperature the tokens of a seed depend on the arms, hence on the
machine's timing; greedy and coupled ones do not.
"""

from __future__ import annotations

import time

from .. import ops
from ..lanes import SerialLanes
from ..predictor import Predictor
from ..session import Committed, Session, Settings
from ..timeline import Span, Timeline
from ..tuning import Arm, Observation, Tuner
from .ar import Autoregressive
from .specbranch import SpecBranch
from .sps import SpeculativeSampling

BOUNDS = {"gamma": 8, "k_max": 4}  # of the arms, where nothing else is asked for


class Auto:
    """Whatever is fastest, found while decoding.

    Args:
        predictor: H-RAD, for the rounds of ``specbranch``.
        tuner: what earlier requests have taught; None: nothing yet.
    """

    needs_draft = True
    overlaps = True

    def __init__(self, predictor: Predictor | None = None, tuner: Tuner | None = None) -> None:
        self.predictor, self.tuner = predictor, tuner
        self._given: Settings | None = None
        self._arm = Arm("ar")
        self._inner: Autoregressive | SpeculativeSampling | SpecBranch = Autoregressive()

    def renew(self) -> Auto:
        """A policy for the next request, which goes on learning where this one was."""
        return Auto(self.predictor, self.tuner)

    def round(self, session: Session) -> Committed:
        """A round of the arm that is chosen for now."""
        tuner = self._tuner_for(session)
        has_chain = isinstance(self._inner, SpecBranch) and self._inner.has_chain
        arm = tuner.next_arm(has_chain=has_chain)
        if arm != self._arm:
            self._change(session, arm)
        started = time.perf_counter()
        looked_at = tuner.is_curious
        committed = self._observed(session, tuner) if looked_at else self._round(session)
        tuner.count(len(committed.tokens), time.perf_counter() - started)
        return committed

    def _tuner_for(self, session: Session) -> Tuner:
        if self._given is None:
            self._given = session.settings
        if self.tuner is None:
            parallel = not isinstance(session.lanes, SerialLanes)
            self.tuner = Tuner(self._given, parallel=parallel)
        return self.tuner

    def _change(self, session: Session, arm: Arm) -> None:
        if isinstance(self._inner, SpecBranch):
            self._inner.drop(session)
        assert self._given is not None, "the first round has set it"
        self._arm = arm
        session.settings = arm.settings(self._given)
        if arm.gamma:
            session.catch_up()
        if arm.k_max:
            self._inner = SpecBranch(self.predictor, stops_growing=False)
        else:
            self._inner = SpeculativeSampling() if arm.gamma else Autoregressive()

    def _round(self, session: Session) -> Committed:
        """Without overlap the arm gets all the cores, as it would by itself."""
        cores: int | None = getattr(session.lanes, "threads", None)
        if cores is None or self._inner.overlaps:
            return self._inner.round(session)
        with ops.limit_threads(cores):
            return self._inner.round(session)

    def _observed(self, session: Session, tuner: Tuner) -> Committed:
        """A round with a timeline; the caller's own one gets it too."""
        theirs, timeline = session.timeline, Timeline()
        before = session.stats.branch_points, session.stats.branch_hits
        is_short = session.chain_room() <= self._arm.gamma
        session.timeline = timeline
        started = time.perf_counter()
        try:
            committed = self._round(session)
        finally:
            session.timeline = theirs
        seconds = time.perf_counter() - started
        reached = session.stats.branch_points > before[0]
        hit = session.stats.branch_hits > before[1] if reached else None
        tuner.observe(self._arm, _observation(timeline, seconds, hit, is_short))
        if theirs is not None:
            theirs.extend(timeline)
        return committed


def _observation(
    timeline: Timeline, seconds: float, hit: bool | None, is_short: bool
) -> Observation:
    """A round's costs, by kind of work."""
    ended = timeline.rounds[-1]
    by_work = {span.work: span for span in timeline.spans}
    chain, growth = by_work.get("chain"), by_work.get("branches")
    return Observation(
        seconds=seconds,
        num_drafted=ended.num_drafted,
        num_accepted=ended.num_accepted,
        num_committed=ended.num_committed,
        forward=by_work["forward"].seconds,
        verify=by_work["verify"].seconds,
        chain_step=_a_forward(chain),
        num_chain_steps=chain.forwards if chain else 0,
        branch_step=_a_forward(growth),
        num_branch_steps=growth.forwards if growth else 0,
        read=_a_forward(by_work.get("read")),
        hit=hit,
        is_short=is_short,
    )


def _a_forward(span: Span | None) -> float | None:
    return span.seconds / span.forwards if span is not None else None
