"""What each policy would do with the requests of a trace, and how long it would take.

The policies are the engine's own (``specbranch.policies``), run over ``Replay`` in a session's
place. ``lookahead`` and ``auto`` cannot be replayed; ``check_policy`` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

from ..comparison.methods import WITHOUT_DRAFT
from ..hedging import Fan, Hedge, HedgePoints
from ..policies import POLICIES, Policy
from ..policies.fanout import FanOut
from ..session import Chain, Session, Settings
from ..stats import Stats
from .costs import Hardware
from .lookup import Lookup
from .replay import RecordedPredictor, Replay
from .trace import LARGEST_K, Traces

REPLAYED = ("ar", "sps", "specbranch", "fanout", "pearl", "adaedl", "ngram")
STAGED = ("specbranch", "fanout")  # those that look at draft_stage and k_max


@dataclass(frozen=True)
class Prediction:
    """One policy with one setting, over all requests of the traces.

    ``stats`` counts as ``Engine`` does; its ``seconds`` are in the unit of the costs, and the
    prompt costs nothing. ``ar`` is the same for the target alone.
    """

    policy: str
    settings: Settings
    hrad: bool
    stats: Stats
    ar: Stats

    @property
    def name(self) -> str:
        """The policy, its draft stage if it has one, and whether H-RAD is asked."""
        stage = f" {self.settings.draft_stage}" if self.policy in STAGED else ""
        return self.policy + stage + (" hrad" if self.hrad else "")

    @property
    def speedup(self) -> float:
        """Over the target alone."""
        return self.ar.seconds / self.stats.seconds * self.stats.new_tokens / self.ar.new_tokens

    @property
    def zero_bubble(self) -> float:
        """The speedup if target lanes never waited, ``ar``'s among them.

        Tokens of a forward over ``ar``'s one, at the price of such a forward over that of ``ar``'s.
        """
        return self.ar.target_seconds / self.stats.target_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        names = ("gamma", "k_max", "epsilon", "draft_stage", "max_ngram")
        return {
            "policy": self.policy,
            "hrad": self.hrad,
            "settings": {name: getattr(self.settings, name) for name in names},
            "speedup": self.speedup,
            "zero_bubble_speedup": self.zero_bubble,
            "stats": self.stats.to_dict(),
        }


class Simulator:
    """Replays policies over the same traces, again and again.

    Args:
        traces: what the pair said.
        hardware: what its forwards cost.
    """

    def __init__(self, traces: Traces, hardware: Hardware) -> None:
        if not traces.requests:
            raise ValueError("traces was empty; it must have at least one request")
        self.traces, self.hardware = traces, hardware
        self._lookups = [Lookup(trace) for trace in traces.requests]
        self._ar = self._total("ar", Settings(), False)

    def run(
        self, policy: str, settings: Settings | None = None, *, hrad: bool = False
    ) -> Prediction:
        """Replay ``policy``; ``hrad``: let the recorded predictor decide what to keep.

        Raises:
            ValueError: the policy cannot be replayed, or the traces do not reach far enough.
        """
        settings = settings or Settings()
        check_replayable(self.traces, policy, settings, hrad)
        stats = self._ar if policy == "ar" else self._total(policy, settings, hrad)
        return Prediction(policy, settings, hrad, stats, self._ar)

    def each(self, policy: str, settings: Settings, *, hrad: bool = False) -> list[Stats]:
        """One ``Stats`` a request."""
        check_replayable(self.traces, policy, settings, hrad)
        return [
            replay(lookup, policy, settings, self.hardware, hrad=hrad) for lookup in self._lookups
        ]

    def _total(self, policy: str, settings: Settings, hrad: bool) -> Stats:
        return add_up(
            [replay(lookup, policy, settings, self.hardware, hrad=hrad) for lookup in self._lookups]
        )


def simulate(
    traces: Traces,
    hardware: Hardware,
    policy: str = "specbranch",
    settings: Settings | None = None,
    *,
    hrad: bool = False,
) -> Prediction:
    """What ``policy`` would do with the requests of ``traces`` on ``hardware``.

    Args:
        settings: how it speculates; ``verify`` is that of the traces, whatever it says.
        hrad: let the recorded predictor decide what to keep.

    Raises:
        ValueError: the policy cannot be replayed, or the traces do not reach far enough.
    """
    return Simulator(traces, hardware).run(policy, settings, hrad=hrad)


def replay(
    lookup: Lookup, policy: str, settings: Settings, hardware: Hardware, *, hrad: bool = False
) -> Stats:
    """One request to its end."""
    method = _method(policy, hrad)
    session = Replay(lookup, settings, hardware.of(policy), overlaps=method.overlaps)
    while not session.is_done:
        method.round(cast(Session, session))
    return session.finish()


def _method(policy: str, hrad: bool) -> Policy:
    if policy == "fanout":
        return ReplayedFanOut()
    return POLICIES[policy](RecordedPredictor() if hrad else None)


class ReplayedFanOut(FanOut):
    """``FanOut`` over a replay, which knows what the draft would read and grow."""

    @staticmethod
    def read_points(session: Session, chain: Chain) -> HedgePoints:
        """As ``hedging.read_points``."""
        return _replay(session).read_points(chain)

    @staticmethod
    def grow_fan(session: Session, chain: Chain, heads: Sequence[Hedge]) -> Fan:
        """As ``hedging.grow_fan``."""
        return cast(Fan, _replay(session).grow_fan(chain, heads))

    @staticmethod
    def keep_read(session: Session, num_accepted: int) -> None:
        """As ``hedging.keep_read``."""
        _replay(session).keep_read(num_accepted)

    @staticmethod
    def forget_chain(session: Session) -> None:
        """As ``hedging.forget_chain``."""
        _replay(session).forget_chain()


def _replay(session: Session) -> Replay:
    return cast(Replay, session)


def check_policy(policy: str) -> None:
    """Refuse a policy that cannot be replayed.

    Raises:
        ValueError: saying why.
    """
    if policy == "lookahead":
        raise ValueError(
            "policy was 'lookahead', which cannot be replayed: its window reads the target at "
            "places that are not on the text, and a trace holds the text"
        )
    if policy == "auto":
        raise ValueError(
            "policy was 'auto', which cannot be replayed: what it tries next follows the times "
            "that it measures, and a trace holds none"
        )
    if policy not in REPLAYED:
        raise ValueError(f"policy was {policy!r}; it must be one of {', '.join(REPLAYED)}")


def check_replayable(traces: Traces, policy: str, settings: Settings, hrad: bool) -> None:
    """Refuse what the traces cannot answer.

    Raises:
        ValueError: saying what.
    """
    check_policy(policy)
    if policy not in WITHOUT_DRAFT and settings.gamma >= traces.rollout:
        raise ValueError(
            f"gamma was {settings.gamma}; with rollouts of {traces.rollout} tokens it must be at "
            f"most {traces.rollout - 1}"
        )
    if policy in STAGED and settings.k_max > LARGEST_K:
        raise ValueError(f"k_max was {settings.k_max}; a trace can tell at most {LARGEST_K}")
    if hrad and (policy != "specbranch" or not traces.origin.hrad):
        raise ValueError(
            f"hrad was True for policy {policy!r}; it must be specbranch, and the traces must have "
            "been recorded with a predictor"
        )


def add_up(parts: Sequence[Stats]) -> Stats:
    """Counters of several requests together."""
    return Stats(
        **{field.name: sum(getattr(part, field.name) for part in parts) for field in fields(Stats)}
    )
