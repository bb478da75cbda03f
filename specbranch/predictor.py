"""How far to trust a drafted branch: the soft signal (confidence) and H-RAD's place.

H-RAD (arXiv 2506.01979, section on hybrid drafting) predicts from the target's hidden states one
of three classes for the tokens drafted behind a surviving branch. Without a trained predictor the
middle class always holds and the draft's confidence decides alone.

Whatever is decided here may use only what is known before a token is drawn: the draft's
distribution at that position, earlier tokens, features of the target. Using the drawn token's own
probability would bias the output (docs/losslessness.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

import torch


class Keep(IntEnum):
    """H-RAD's classes: what to keep of a drafted continuation."""

    NOTHING = 0
    CONFIDENT = 1  # up to the first position whose confidence is below epsilon
    ALL = 2


class Predictor(Protocol):
    """Anything that turns the target's features into a ``Keep`` class."""

    hidden_layers: int  # how many of the target's last layers it wants (K in the paper)

    def predict(self, hidden: torch.Tensor, next_token: int) -> Keep:
        """Decide from ``hidden [K, d]`` at the newest verified position and the token after it."""
        ...


def num_confident(confidence: Sequence[float], epsilon: float) -> int:
    """Positions before the first one whose confidence (the draft's max probability) is too low."""
    for idx, value in enumerate(confidence):
        if value < epsilon:
            return idx
    return len(confidence)


def num_kept(keep: Keep, confidence: Sequence[float], epsilon: float) -> int:
    """How many drafted tokens of a branch become the next chain."""
    if keep is Keep.NOTHING:
        return 0
    return len(confidence) if keep is Keep.ALL else num_confident(confidence, epsilon)
