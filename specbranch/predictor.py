"""How far to trust a drafted branch: the soft signal (confidence) and H-RAD, the hard one.

H-RAD (arXiv 2506.01979, section on hybrid drafting) predicts from the target's hidden states one
of three classes for the tokens drafted behind a surviving branch. Without a trained predictor the
middle class always holds and the draft's confidence decides alone. ``hrad/`` trains one.

Whatever is decided here may use only what is known before a token is drawn: the draft's
distribution at that position, earlier tokens, features of the target. Using the drawn token's own
probability would bias the output (docs/losslessness.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file

from .files import read_tensors
from .models.linear import Linear, PlainLinear
from .models.protocol import CausalLM
from .sampling_params import check_int

FORMAT = "specbranch-hrad-1"  # the key of the config in a file's metadata
HIDDEN_WIDTHS = (256, 64)


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


# ------------------------------------------------------------------------------------------ H-RAD
@dataclass(frozen=True)
class HRadConfig:
    """What a predictor was trained for; kept in its file.

    Args:
        hidden_layers: K, how many of the target's last layers it reads.
        hidden_size: d, the target's width.
        vocab_size: of target and draft.
        gamma: draft length that its classes speak of.
        target, draft: names of the pair, for people to read.
    """

    hidden_layers: int
    hidden_size: int
    vocab_size: int
    gamma: int
    target: str = ""
    draft: str = ""

    def __post_init__(self) -> None:
        for name in ("hidden_layers", "hidden_size", "vocab_size", "gamma"):
            check_int(name, getattr(self, name), 1)

    @property
    def num_features(self) -> int:
        """``(K + 1) * d``."""
        return (self.hidden_layers + 1) * self.hidden_size

    def check_target(self, target: CausalLM, name: str = "predictor") -> None:
        """Refuse a target that the predictor cannot read.

        Raises:
            ValueError: naming what the predictor needs and what the target has.
        """
        width = embedding_of(target).shape[1]
        layers = num_layers_of(target)
        if (width, target.vocab_size) != (self.hidden_size, self.vocab_size):
            raise ValueError(
                f"{name} was trained for a target of width {self.hidden_size} with "
                f"{self.vocab_size} tokens; this target has width {width} and "
                f"{target.vocab_size} tokens"
            )
        if layers is not None and layers < self.hidden_layers:
            raise ValueError(
                f"{name} reads the last {self.hidden_layers} layers; this target has {layers}"
            )


def embedding_of(target: CausalLM) -> torch.Tensor:
    """The target's embedding ``[V, d]``.

    Raises:
        ValueError: the target has none to show (a table, say), so H-RAD cannot serve it.
    """
    embedding = getattr(target, "embedding", None)
    if not isinstance(embedding, torch.Tensor) or embedding.dim() != 2:
        raise ValueError(
            f"target was a {type(target).__name__} without an embedding [V, d]; H-RAD needs the "
            "embedding and the hidden states of its target"
        )
    return embedding


def num_layers_of(target: CausalLM) -> int | None:
    """The target's decoder layers, None where it does not say."""
    found = getattr(getattr(target, "config", None), "num_layers", None)
    return found if isinstance(found, int) else None


class HRad:
    """The trained predictor: a three-layer MLP, ``(K + 1) * d -> 256 -> 64 -> 3``, ReLU.

    Reads ``concat(h_{L-K+1..L}, embedding[next_token])``: the target's last K hidden states
    at the newest verified position and its embedding of the token committed behind it. All of that
    is known before any token of the branch is judged, so the output stays exact.

    Args:
        config: what it was trained for.
        tensors: ``layers.{0,1,2}.weight`` ``[out, in]`` and ``.bias`` ``[out]``.
        target: the model it reads.

    Raises:
        ValueError: the tensors are not such an MLP, or the target does not fit.
    """

    def __init__(
        self, config: HRadConfig, tensors: Mapping[str, torch.Tensor], target: CausalLM
    ) -> None:
        config.check_target(target)
        self.config, self.tensors = config, dict(tensors)
        self.hidden_layers, self.gamma = config.hidden_layers, config.gamma
        self._embedding = embedding_of(target)
        self._check_tensors()
        device = self._embedding.device
        kind: Callable[..., Linear | PlainLinear] = Linear if device.type == "cpu" else PlainLinear
        self._layers = [
            kind(*(self.tensors[f"layers.{idx}.{name}"].float().to(device) for name in _PARTS))
            for idx in range(len(HIDDEN_WIDTHS) + 1)
        ]

    @classmethod
    def load(cls, path: str | Path, target: CausalLM) -> HRad:
        """Read a file that ``save`` wrote, for ``target``.

        Raises:
            ValueError: it is no such file, or the target does not fit; both are named.
            OSError: it cannot be read.
        """
        config, tensors = _read(Path(path))
        config.check_target(target, str(path))
        try:
            return cls(config, tensors, target)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write weights and config as one safetensors file."""
        # One key, since the library writes several in no fixed order: same run, same file.
        save_file(self.tensors, path, metadata={FORMAT: json.dumps(asdict(self.config))})

    def check_target(self, target: CausalLM) -> None:
        """Refuse a target that does not fit; the engine asks."""
        self.config.check_target(target)

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """``[n, (K + 1) * d]`` float32 to the logits of the classes, ``[n, 3]``."""
        first, second, third = self._layers
        return third(second(first(features).relu_()).relu_())

    def predict(self, hidden: torch.Tensor, next_token: int) -> Keep:
        """Decide from ``hidden [K, d]`` at the newest verified position and the token after it."""
        if hidden.shape != (self.hidden_layers, self.config.hidden_size):
            raise ValueError(
                f"hidden was {list(hidden.shape)}; it must be "
                f"{[self.hidden_layers, self.config.hidden_size]}"
            )
        with torch.inference_mode():
            features = torch.cat((hidden.flatten(), self._embedding[next_token])).float()
            return Keep(int(self.scores(features.unsqueeze(0)).argmax()))

    def _check_tensors(self) -> None:
        widths = (self.config.num_features, *HIDDEN_WIDTHS, len(Keep))
        for idx, (inputs, outputs) in enumerate(pairwise(widths)):
            for name, shape in zip(_PARTS, ((outputs, inputs), (outputs,)), strict=True):
                key = f"layers.{idx}.{name}"
                found = list(self.tensors[key].shape) if key in self.tensors else "missing"
                if found != list(shape):
                    raise ValueError(f"{key} was {found}; it must be {list(shape)}")


_PARTS = ("weight", "bias")


def _read(path: Path) -> tuple[HRadConfig, dict[str, torch.Tensor]]:
    """Config and tensors of a file."""
    metadata, tensors = read_tensors(path, "pt")
    if FORMAT not in metadata:
        raise ValueError(f"{path} is not an H-RAD predictor; specbranch train-hrad makes them")
    try:
        config = HRadConfig(**json.loads(metadata[FORMAT]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has damaged metadata: {error}") from error
    return config, tensors
