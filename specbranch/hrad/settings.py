"""What a training run does; nothing here imports torch, so that the command line is quick."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..sampling_params import check_float, check_int

# Settings that the examples depend on; the others concern the training alone.
DATA_SETTINGS = ("gamma", "layers", "n", "max_new_tokens", "temperatures", "seed")


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training run; validates itself.

    Args:
        gamma: draft length that the classes speak of.
        layers: K, how many of the target's last layers are read.
        n: prompts; some of them are held out.
        max_new_tokens: tokens generated per prompt and temperature.
        temperatures: each prompt is continued once at each of them.
        held_out: share of the prompts that is never trained on.
        epochs, batch, learning_rate, weight_decay, dropout: of the training.
        balanced: weigh the classes so that each counts the same.
        seed: of prompts, drafts, split, batches and weights; same seed, same file.

    Raises:
        TypeError, ValueError: naming the setting, what it was and what it must be.
    """

    gamma: int = 4
    layers: int = 4
    n: int = 400
    max_new_tokens: int = 128
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
    held_out: float = 0.2
    epochs: int = 20
    batch: int = 32
    learning_rate: float = 1e-4
    weight_decay: float = 0.1
    dropout: float = 0.2
    balanced: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_int("gamma", self.gamma, 1, 64)
        check_int("layers", self.layers, 1)
        check_int("n", self.n, 2)
        # The first round has no features yet: nothing to learn from a request of one round.
        check_int("max_new_tokens", self.max_new_tokens, 2 * self.gamma + 2)
        if not self.temperatures:
            raise ValueError("temperatures was empty; it must have at least one")
        for value in self.temperatures:
            check_float("temperatures", value, 0.0, math.inf)
        check_float("held_out", self.held_out, 0.0, 1.0)
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out was {self.held_out}; it must be between 0 and 1")
        check_int("epochs", self.epochs, 1)
        check_int("batch", self.batch, 1)
        for name in ("learning_rate", "weight_decay"):
            check_float(name, getattr(self, name), 0.0, 1.0)
        check_float("dropout", self.dropout, 0.0, 0.9)
        check_int("seed", self.seed, 0, 2**31 - 1)

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        return asdict(self) | {"temperatures": list(self.temperatures)}

    def data(self) -> dict[str, Any]:
        """Those that the examples depend on."""
        return {key: value for key, value in self.to_dict().items() if key in DATA_SETTINGS}
