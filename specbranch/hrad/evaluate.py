"""What a predictor is worth: accuracy on held-out prompts next to two references."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..models.protocol import CausalLM
from ..predictor import HRad, Keep, embedding_of
from .collect import Examples
from .fit import CHUNK, raw_features

NAMES = {Keep.NOTHING: "nothing", Keep.CONFIDENT: "in between", Keep.ALL: "all"}
THRESHOLDS = torch.arange(0.0, 1.0, 0.01)


@dataclass(frozen=True)
class Score:
    """How well a rule guesses the classes."""

    accuracy: float
    balanced_accuracy: float  # mean over the classes of the share that was found
    confusion: list[list[int]]  # [true class][guessed class]
    threshold: float | None = None  # of a confidence rule


def score(labels: torch.Tensor, guesses: torch.Tensor, threshold: float | None = None) -> Score:
    """Compare guesses ``[n]`` with labels ``[n]``."""
    count = len(Keep)
    table = torch.bincount(labels * count + guesses, minlength=count**2).view(count, count)
    totals = table.sum(1)
    found = table.diagonal()[totals > 0] / totals[totals > 0]
    accuracy = float(table.diagonal().sum() / max(1, len(labels)))
    return Score(accuracy, float(found.mean()), table.tolist(), threshold)


def predicted(predictor: HRad, target: CausalLM, examples: Examples) -> torch.Tensor:
    """The predictor's classes, ``[n]``, by the very layers that ``HRad.predict`` runs."""
    embedding = embedding_of(target)
    found = []
    with torch.inference_mode():
        for rows in torch.arange(len(examples)).split(CHUNK):  # type: ignore[no-untyped-call]
            part = examples.rows(rows)
            features = raw_features(part, embedding.float().cpu())
            found.append(predictor.scores(features.to(embedding.device)).argmax(-1).cpu())
    return torch.cat(found)


def by_confidence(confidence: torch.Tensor, threshold: float) -> torch.Tensor:
    """The class that ``num_confident`` amounts to: none, some or all positions are trusted.

    ``confidence [n, gamma]``. It sees more than H-RAD does: the draft's distribution at each
    drafted position, hence the tokens drafted before it.
    """
    trusted = (confidence >= threshold).long().cumprod(1).sum(1)
    guesses = torch.full_like(trusted, int(Keep.CONFIDENT))
    guesses[trusted == 0] = int(Keep.NOTHING)
    guesses[trusted == confidence.shape[1]] = int(Keep.ALL)
    return guesses


def best_threshold(examples: Examples, measure: str) -> float:
    """The threshold that does best on (training) examples, by a field of ``Score``."""
    scores = [
        getattr(score(examples.label, by_confidence(examples.confidence, value)), measure)
        for value in THRESHOLDS.tolist()
    ]
    return float(THRESHOLDS[int(torch.tensor(scores).argmax())])


def evaluate(
    predictor: HRad, target: CausalLM, train: Examples, held_out: Examples
) -> dict[str, Score]:
    """Scores on ``held_out``; what the references need to know they learn from ``train``."""
    labels = held_out.label
    commonest = int(torch.bincount(train.label, minlength=len(Keep)).argmax())
    found = {
        "H-RAD": score(labels, predicted(predictor, target, held_out)),
        "commonest class": score(labels, torch.full_like(labels, commonest)),
    }
    for name, measure in (
        ("confidence, best accuracy", "accuracy"),
        ("confidence, best balance", "balanced_accuracy"),
    ):
        threshold = best_threshold(train, measure)
        guesses = by_confidence(held_out.confidence, threshold)
        found[name] = score(labels, guesses, threshold)
    return found


def as_text(scores: dict[str, Score], count: int) -> str:
    """A table of the scores and H-RAD's confusion matrix, for a person."""
    lines = [f"{'held out: ' + str(count) + ' examples':<30}{'accuracy':>10}{'balanced':>10}"]
    for name, found in scores.items():
        label = name if found.threshold is None else f"{name} ({found.threshold:.2f})"
        lines.append(f"{label:<30}{found.accuracy:>10.3f}{found.balanced_accuracy:>10.3f}")
    lines += [
        "",
        f"{'accepted':<12}" + "".join(f"{NAMES[kind]:>12}" for kind in Keep) + "  guessed",
    ]
    for kind, row in zip(Keep, scores["H-RAD"].confusion, strict=True):
        lines.append(f"{NAMES[kind]:<12}" + "".join(f"{value:>12}" for value in row))
    return "\n".join(lines) + "\n"


def as_object(scores: dict[str, Score]) -> dict[str, Any]:
    """The scores as plain values, rounded."""
    found = {}
    for name, one in scores.items():
        values = {key: value for key, value in asdict(one).items() if value is not None}
        found[name] = {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in values.items()
        }
    return found
