"""A made-up machine and pair: rounds of any arm, with times and outcomes of a simple known law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from specbranch.session import Settings
from specbranch.tuning import Arm, Outcome, Tuner

Noise = Callable[[], float]


@dataclass(frozen=True)
class Round:
    """What one took, and what became of its chain."""

    seconds: float
    outcome: Outcome

    @property
    def tokens(self) -> int:
        return self.outcome.num_accepted + 1  # the target adds one of its own


@dataclass
class World:
    """Guesses are right i.i.d. with ``alpha``; a branch point is hit with ``alpha ** (1 / k)``.

    ``slope``: what a further row costs, as a share of a target forward. ``unit``: seconds of a
    draft forward; other times are in draft forwards.
    """

    alpha: float
    speed_ratio: float
    slope: float = 0.0
    parallel: bool = True
    jitter: float = 0.0
    switching: float = 5.0
    phase: float = 0.0  # the machine is three times slower in every other stretch so long; 0: never
    unit: float = 1.0
    seed: int = 0
    now: float = 0.0
    chain: int = -1  # drafted for the next round; -1: the pipeline is empty
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def forward(self, rows: int) -> float:
        """A target forward."""
        return self.speed_ratio * (1.0 + self.slope * (rows - 1)) * self._noise()

    def round(self, arm: Arm) -> Round:
        """One round; the clock moves on."""
        chain, steps = 0, 0
        if arm.gamma and not arm.k_max:
            chain = steps = arm.gamma
        elif arm.k_max:
            fresh = self.chain < 0
            chain = self.chain if not fresh else arm.gamma * (arm.draft_stage == "serial")
            steps = chain if fresh else 0
        forward, step = self.forward(chain + 1), self._noise()
        growth = (1 + arm.gamma) * step if arm.k_max else 0.0
        accepted = 0
        while accepted < chain and self.rng.random() < self.alpha:
            accepted += 1
        reached = arm.k_max > 0 and accepted == chain
        luck = self.rng.random()
        self.chain = arm.gamma if reached and luck < self.alpha ** (1 / arm.k_max) else -1
        both = max(forward, growth) if self.parallel else forward + growth
        seconds = self.unit * (both + steps * step)
        self.now += seconds
        return Round(
            seconds, Outcome(chain, accepted, bool(luck < self.alpha) if reached else None)
        )

    def switch(self) -> float:
        """Another arm goes on: what was drafted is dropped, and the draft reads what it missed."""
        self.chain = -1
        seconds = self.unit * self.switching
        self.now += seconds
        return seconds

    def _noise(self) -> float:
        slow = 3.0 if self.phase and self.now // (self.unit * self.phase) % 2 else 1.0
        noise = float(np.exp(self.jitter * self.rng.standard_normal())) if self.jitter else 1.0
        return slow * noise


def fixed_speed(world: World, arm: Arm, tokens: int = 20000) -> float:
    """Tokens a unit of time of one arm alone."""
    made, started, world.chain = 0, world.now, -1
    while made < tokens:
        made += world.round(arm).tokens
    return made / (world.now - started)


def tuned_speed(world: World, settings: Settings, tokens: int) -> tuple[float, Tuner]:
    """Tokens a unit of time with a tuner that knows nothing at first."""
    tuner = Tuner(settings, clock=lambda: world.now)
    made, started, last = 0, world.now, None
    while made < tokens:
        arm = tuner.next_arm(has_chain=world.chain > 0)
        changing = world.switch() if arm != last else 0.0
        last = arm
        stretch = tuner.stretch
        rounds = [world.round(arm) for _ in range(stretch.to_next_look)]
        seconds, seen = [each.seconds for each in rounds], [each.outcome for each in rounds]
        tuner.observe(stretch, seconds, seen, changing=changing)
        made += sum(each.tokens for each in rounds)
    return made / (world.now - started), tuner
