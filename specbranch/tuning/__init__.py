"""Learning what is fastest while decoding: the arms, what they bring and cost, and the choice."""

from .arms import Arm, arms_of
from .gain import Outcome
from .tuner import Stretch, Tuner

__all__ = ["Arm", "Outcome", "Stretch", "Tuner", "arms_of"]
