"""Moves between ``ar``, ``sps`` and ``specbranch``, their gamma and k, by what they cost and bring.

Measured online: seconds a round, of arms that take turns; how far the draft's guesses hold; what
branches are worth. ``tuning.Tuner`` chooses by them; what an engine has learnt serves its next
requests.

Losslessness. Each round is one of a lossless policy, and where one arm follows another the draft
goes on from the committed text. But the choice hangs on times and counts, and these on everything
that was drafted, also behind a rejection, where the same random numbers are drawn from again: with
rejection sampling that is a way, if a narrow one, for them to reach the output. So ``auto``
verifies ``coupled``, where there is no such way: the tokens are those of ``ar`` with the same seed,
whatever was chosen and however the clock ran.
"""

from __future__ import annotations

import math
import time

from ..lanes import Lanes
from ..session import Committed, Session, Settings
from ..tuning import Arm, Outcome, Stretch, Tuner
from .ar import Autoregressive
from .specbranch import SpecBranch
from .sps import SpeculativeSampling

# Bounds of the arms, where nothing else is asked for, and the only way to verify.
DEFAULTS: dict[str, int | str] = {"gamma": 8, "k_max": 4, "verify": "coupled"}
# Seconds in which caches fill with weights, and threads that read the prompt use up a core.
BEGINNING = 0.008


# What a round committed, when it began and ended by the clock, and, of arms with branches, the
# longest chain it had room for. There are many: a plain tuple is made in no time.
_Round = tuple[Committed, float, float, int]


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
        self._stretch: Stretch | None = None  # that the rounds since the last look are part of
        self._left = 0  # rounds to the next look
        self._unseen: list[_Round] = []  # since the last look
        self._changing = 0.0  # seconds, of these
        self._began = math.inf  # by the clock
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
        self._tuner = Tuner(settings)

    def renew(self) -> Auto:
        """A policy for the next request, which goes on learning where this one was."""
        self._catch_up()
        return Auto(self._tuner)

    def wants_draft(self) -> bool:
        """Whether the next request's draft should read the prompt beside the target."""
        return self.tuner.stretch.arm.gamma > 0

    def round(self, session: Session) -> Committed:
        """A round of the arm that is chosen for now."""
        if not self._left:
            self._look(session)
        self._left -= 1
        room = session.chain_room() if self._arm.k_max else 0
        started = time.perf_counter()
        committed = self._inner.round(session)
        self._unseen.append((committed, started, time.perf_counter(), room))
        return committed

    def _look(self, session: Session) -> None:
        """Tell what came of the last rounds, and go on with what is chosen then."""
        self._began = min(self._began, time.perf_counter())
        self._catch_up()
        arm = self.tuner.next_arm(has_chain=self._chain_length > 0)
        self._stretch = self.tuner.stretch
        self._left = self._stretch.to_next_look
        if arm != self._arm:
            started = time.perf_counter()
            self._change(session, arm)
            self._changing = time.perf_counter() - started

    def _catch_up(self) -> None:
        """Tell the tuner of the rounds since the last look."""
        rounds, self._unseen = self._unseen, []
        changing, self._changing = self._changing, 0.0
        if self._stretch is None or not rounds:
            return
        if self._arm.gamma:
            seen = [self._outcome(committed, room) for committed, _, _, room in rounds]
        else:
            seen = [Outcome(0, 0)] * len(rounds)
        steady = self._began + BEGINNING
        seconds = [ended - started if started > steady else None for _, started, ended, _ in rounds]
        self.tuner.observe(self._stretch, seconds, seen, changing=changing)

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

    def _outcome(self, committed: Committed, room: int) -> Outcome:
        """What became of a round's chain, and of the draft's best guess behind it."""
        arm = self._arm
        num_drafted, num_accepted = committed.num_drafted, committed.origins.count("chain")
        if not arm.k_max:
            return Outcome(num_drafted, num_accepted, is_cut=num_drafted < arm.gamma)
        # Behind the chain come a token at the branch point, and branches.
        is_cut = room <= num_drafted + arm.gamma
        return Outcome(num_drafted, num_accepted, committed.survivor == 0, is_cut)
