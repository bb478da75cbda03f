"""Learning what is fastest while decoding: the arms, what they bring and cost, and the choice."""

from .arms import Arm, arms_of
from .gain import Outcome
from .tuner import Tuner

__all__ = ["Arm", "Outcome", "Tuner", "arms_of"]
