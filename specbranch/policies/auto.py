"""Moves between ``ar``, ``sps`` and ``specbranch``, their gamma and k, by what they cost and bring.

Measured online: seconds a round, of arms that take turns; acceptance by position, the branch hit
rate, tokens a round. ``tuning.Tuner`` chooses by them; what an engine has learnt serves its next
requests.

Losslessness. Each round is one of a lossless policy, and where one arm follows another the draft
goes on from the committed text. But the choice hangs on times and counts, and these on everything
that was drafted, also behind a rejection, where the same random numbers are drawn from again: with
rejection sampling that is a way, if a narrow one, for them to reach the output. So ``auto``
verifies ``coupled``, where there is no such way: the tokens are those of ``ar`` with the same seed,
whatever was chosen and however the clock ran.
"""

from __future__ import annotations

import time

from ..lanes import Lanes
from ..session import Committed, Session, Settings
from ..tuning import Arm, Outcome, Tuner
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
        self._free = 0  # rounds that need no look
        self._unseen: list[Committed] = []  # since the last look
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
        if not self._free:
            return self._observed(session)
        self._free -= 1
        committed = self._inner.round(session)
        self._unseen.append(committed)
        return committed

    def _observed(self, session: Session) -> Committed:
        """A round by the clock, perhaps of another arm."""
        self._catch_up()
        tuner, changing = self.tuner, 0.0
        arm = tuner.next_arm(has_chain=self._chain_length > 0)
        started = time.perf_counter()
        if arm != self._arm:
            self._change(session, arm)
            changing = time.perf_counter() - started
        room = session.chain_room()
        committed = self._inner.round(session)
        seconds = time.perf_counter() - started - changing
        seen = self._outcome(committed, self._chain_length, room)
        tuner.observe(seconds, seen, changing=changing)
        self._free = tuner.stretch.free
        if arm.k_max:  # near the end branches may be cut, and none goes by unseen
            whole = (session.chain_room() - 2 * arm.gamma) // (arm.gamma + 1)
            self._free = min(self._free, max(0, whole))
        return committed

    def _catch_up(self) -> None:
        """Tell the tuner what went by unseen; a chain that follows a hit is what was kept then."""
        rounds, self._unseen = self._unseen, []
        if not rounds:
            return
        if self._arm.gamma:
            kept = [*(each.num_drafted for each in rounds[1:]), None]
            seen = [self._outcome(*each) for each in zip(rounds, kept, strict=True)]
        else:
            seen = [Outcome(0, 0)] * len(rounds)
        self.tuner.coasted(self._arm, seen)

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

    def _outcome(
        self, committed: Committed, num_kept: int | None, room: int | None = None
    ) -> Outcome:
        """What became of the round's chain, and whether a branch was ready behind it.

        ``num_kept``: of a branch that was hit, for the next chain; None: not known. ``room``: for
        chains, before the round; None: enough for branches, without which none goes by unseen.
        """
        num_drafted, num_accepted = committed.num_drafted, committed.origins.count("chain")
        if self._arm.k_max:  # behind the chain come a token at the branch point, and branches
            is_cut = room is not None and room <= num_drafted + self._arm.gamma
        else:
            is_cut = num_drafted < self._arm.gamma
        if is_cut or num_kept is None or not self._arm.k_max:
            return Outcome(num_drafted, num_accepted, is_cut=is_cut)
        hit = committed.origins[-1] == "branch"
        reached = num_accepted == num_drafted
        return Outcome(
            num_drafted, num_accepted, hit if reached else None, num_kept if hit else None
        )
