"""Moves between ``ar``, ``sps`` and ``specbranch``, their gamma and k, by what they cost and bring.

Measured online: the time of each model's forwards by their rows, the acceptance by position, the
branch hit rate. ``tuning.Tuner`` predicts every arm's speed from them; what an engine has learnt
serves its next requests.

Losslessness. Each round is one of a lossless policy, and where one arm follows another the draft
goes on from the committed text. But the choice hangs on times and counts, and these on everything
that was drafted, also behind a rejection, where the same random numbers are drawn from again: with
rejection sampling that is a way, if a narrow one, for them to reach the output. So ``auto``
verifies ``coupled``, where there is no such way: the tokens are those of ``ar`` with the same seed,
whatever was chosen and however the clock ran.
"""

from __future__ import annotations

import time

from .. import ops
from ..lanes import Lanes, SerialLanes
from ..session import Committed, Session, Settings
from ..timeline import Span, Timeline
from ..tuning import Arm, Observation, Tuner
from .ar import Autoregressive
from .specbranch import SpecBranch
from .sps import SpeculativeSampling

# Bounds of the arms, where nothing else is asked for, and the only way to verify.
DEFAULTS: dict[str, int | str] = {"gamma": 8, "k_max": 4, "verify": "coupled"}


class Auto:
    """Whatever is fastest, found while decoding.

    Args:
        tuner: what earlier requests have taught; None: ``begin`` makes one.
    """

    needs_draft = True
    overlaps = True

    def __init__(self, tuner: Tuner | None = None) -> None:
        self._tuner = tuner
        self._arm = Arm("ar")
        self._inner: Autoregressive | SpeculativeSampling | SpecBranch = Autoregressive()

    @property
    def tuner(self) -> Tuner:
        """What is known, of all requests of the engine."""
        assert self._tuner is not None, "the engine begins before the first request"
        return self._tuner

    def begin(self, settings: Settings, lanes: Lanes) -> None:
        """Get ready to learn; once an engine.

        Raises:
            ValueError: the settings are not for it.
        """
        if settings.verify != "coupled":
            raise ValueError(
                f"verify was {settings.verify!r}; with policy 'auto', whose choices follow the "
                "clock, it must be coupled"
            )
        self._tuner = Tuner(settings, parallel=not isinstance(lanes, SerialLanes))

    def renew(self) -> Auto:
        """A policy for the next request, which goes on learning where this one was."""
        return Auto(self._tuner)

    def round(self, session: Session) -> Committed:
        """A round of the arm that is chosen for now."""
        tuner = self.tuner
        arm = tuner.next_arm(has_chain=self._chain_length > 0)
        started = time.perf_counter()
        if arm != self._arm:
            self._change(session, arm)
        committed = self._observed(session) if tuner.is_curious else self._round(session)
        tuner.count(len(committed.tokens), time.perf_counter() - started)
        return committed

    @property
    def _chain_length(self) -> int:
        """Tokens that are drafted for the next round already."""
        return self._inner.chain_length if isinstance(self._inner, SpecBranch) else 0

    def _change(self, session: Session, arm: Arm) -> None:
        if isinstance(self._inner, SpecBranch):
            self._inner.drop(session)
        self._arm = arm
        session.settings = arm.settings(self.tuner.settings)
        if arm.gamma:
            session.catch_up()
        if arm.k_max:
            self._inner = SpecBranch()
        else:
            self._inner = SpeculativeSampling() if arm.gamma else Autoregressive()

    def _round(self, session: Session) -> Committed:
        """Without overlap the arm gets all the cores, as it would by itself."""
        cores: int | None = getattr(session.lanes, "threads", None)
        if cores is None or self._inner.overlaps:
            return self._inner.round(session)
        with ops.limit_threads(cores):
            return self._inner.round(session)

    def _observed(self, session: Session) -> Committed:
        """A round with a timeline; the caller's own one gets it too."""
        theirs, timeline = session.timeline, Timeline()
        is_short = session.chain_room() <= self._arm.gamma
        session.timeline = timeline
        started = time.perf_counter()
        try:
            committed = self._round(session)
        finally:
            session.timeline = theirs
        seen = self._observation(timeline, time.perf_counter() - started, is_short)
        self.tuner.observe(self._arm, seen)
        if theirs is not None:
            theirs.extend(timeline)
        return committed

    def _observation(self, timeline: Timeline, seconds: float, is_short: bool) -> Observation:
        """A round's costs, by kind of work, and its outcome."""
        ended = timeline.rounds[-1]
        reached = bool(self._arm.k_max) and ended.num_accepted == ended.num_drafted
        hit = ended.last == "branch"
        by_work = {span.work: span for span in timeline.spans}
        chain, growth = by_work.get("chain"), by_work.get("branches")
        return Observation(
            seconds=seconds,
            num_drafted=ended.num_drafted,
            num_accepted=ended.num_accepted,
            forward=by_work["forward"].seconds,
            verify=by_work["verify"].seconds,
            chain_step=_a_forward(chain),
            num_chain_steps=chain.forwards if chain else 0,
            branch_step=_a_forward(growth),
            num_branch_steps=growth.forwards if growth else 0,
            read=_a_forward(by_work.get("read")),
            hit=hit if reached else None,
            num_kept=self._chain_length if hit else None,
            is_short=is_short,
        )


def _a_forward(span: Span | None) -> float | None:
    return span.seconds / span.forwards if span is not None else None
