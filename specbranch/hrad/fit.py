"""The MLP and its training; taken up where it was interrupted, with the same result bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..files import write_safely
from ..predictor import HIDDEN_WIDTHS, Keep
from ..progress import Progress
from .collect import Examples
from .settings import TrainSettings

CHUNK = 4096


class Features:
    """Rows of standardised features ``[n, (K + 1) * d]``, made when they are asked for.

    Layers of a decoder differ in scale by far, and some of their entries by a thousand times; mean
    and spread of the training rows even that out (and are folded into the first layer's weights
    in the end, see ``folded``).
    """

    def __init__(self, examples: Examples, embedding: torch.Tensor) -> None:
        self._examples, self._embedding = examples, embedding.float().cpu()
        total = torch.zeros(self.width, dtype=torch.float64)
        squares = torch.zeros_like(total)
        for rows in torch.arange(len(examples)).split(CHUNK):  # type: ignore[no-untyped-call]
            raw = self.raw(rows).double()
            total += raw.sum(0)
            squares += raw.square().sum(0)
        self.mean = total / len(examples)
        spread = (squares / len(examples) - self.mean.square()).clamp(min=0.0).sqrt()
        self.mean, self.spread = self.mean.float(), spread.float() + 1e-6

    @property
    def width(self) -> int:
        """``(K + 1) * d``."""
        return self._examples.hidden[0].numel() + self._embedding.shape[1]

    def raw(self, rows: torch.Tensor) -> torch.Tensor:
        """As the round sees them."""
        return raw_features(self._examples.rows(rows), self._embedding)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Standardised."""
        return (self.raw(rows) - self.mean) / self.spread


def raw_features(examples: Examples, embedding: torch.Tensor) -> torch.Tensor:
    """``concat(hidden states, embedding of the committed next token)``: ``[n, (K + 1) * d]``."""
    return torch.cat((examples.hidden.flatten(1).float(), embedding[examples.next_token]), 1)


def new_mlp(num_features: int, dropout: float) -> nn.Sequential:
    """``num_features -> 256 -> 64 -> 3`` (arXiv 2506.01979)."""
    first, second = HIDDEN_WIDTHS
    return nn.Sequential(
        nn.Linear(num_features, first), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(first, second), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(second, len(Keep)),
    )  # fmt: skip


def class_weights(labels: torch.Tensor, balanced: bool) -> torch.Tensor:
    """Weight of each class in the loss: all classes count the same, or all examples do."""
    if not balanced:
        return torch.ones(len(Keep))
    counts = torch.bincount(labels, minlength=len(Keep)).float()
    present = counts > 0
    weights = torch.zeros(len(Keep))
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


class Fit:
    """The training; its state lies in ``checkpoint`` after each epoch.

    Every epoch draws batches and dropout from a seed of its own, so a run that was interrupted ends
    with the weights of one that was not.
    """

    def __init__(
        self,
        examples: Examples,
        embedding: torch.Tensor,
        settings: TrainSettings,
        checkpoint: Path,
    ) -> None:
        self.settings, self.checkpoint, self.epoch = settings, checkpoint, 0
        self.features, self.labels = Features(examples, embedding), examples.label
        torch.manual_seed(settings.seed)
        self.mlp = new_mlp(self.features.width, settings.dropout)
        self.optimizer = torch.optim.AdamW(
            self.mlp.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._weights = class_weights(self.labels, settings.balanced)
        self._mark = json.dumps([settings.to_dict(), len(examples), int(self.labels.sum())])
        if checkpoint.exists():
            self._take_up(torch.load(checkpoint, weights_only=True))

    def run(self) -> dict[str, torch.Tensor]:
        """Train to the end; the weights as ``HRad`` takes them."""
        with Progress("train", self.settings.epochs, self.epoch) as bar:
            while self.epoch < self.settings.epochs:
                loss = self._one_epoch()
                self.epoch += 1
                write_safely(self.checkpoint, lambda path: torch.save(self._state(), path))
                bar.step(f"loss {loss:.3f}")
        return folded(self.mlp, self.features.mean, self.features.spread)

    def _one_epoch(self) -> float:
        """Mean loss over the epoch."""
        settings, count = self.settings, len(self.labels)
        torch.manual_seed(settings.seed * 1_000_003 + self.epoch + 1)
        order = torch.from_numpy(
            np.random.default_rng([settings.seed, self.epoch]).permutation(count)
        )
        total = 0.0
        self.mlp.train()
        for done in range(0, count, settings.batch):
            rows = order[done : done + settings.batch]
            self._set_rate((self.epoch + done / count) / settings.epochs)
            loss = F.cross_entropy(self.mlp(self.features(rows)), self.labels[rows], self._weights)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.item() * len(rows)
        return total / count

    def _set_rate(self, progress: float) -> None:
        """Linear decay to 2 % of the peak."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * (1.0 - 0.98 * progress)

    def _state(self) -> dict[str, object]:
        return {
            "mark": self._mark,
            "epoch": self.epoch,
            "mlp": self.mlp.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def _take_up(self, state: dict[str, object]) -> None:
        """Go on from a checkpoint; one of other settings or examples is of no use."""
        if state["mark"] != self._mark:
            return
        self.mlp.load_state_dict(state["mlp"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self.epoch = int(state["epoch"])  # type: ignore[call-overload]


def folded(mlp: nn.Sequential, mean: torch.Tensor, spread: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weights for raw features, in bfloat16, biases in float32.

    ``W ((x - mean) / spread) + b = (W / spread) x + (b - (W / spread) mean)``; the bias is made
    from the rounded weight, so that rounding cannot shift what a large mean contributes.
    """
    linear = [layer for layer in mlp if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        weights = [linear[0].weight / spread, *(layer.weight for layer in linear[1:])]
        weights = [weight.to(torch.bfloat16) for weight in weights]
        biases = [layer.bias.clone() for layer in linear]
        biases[0] -= (weights[0].double() @ mean.double()).float()
    found = {f"layers.{idx}.weight": weight.contiguous() for idx, weight in enumerate(weights)}
    return found | {f"layers.{idx}.bias": bias for idx, bias in enumerate(biases)}
