"""The whole of a training run: collect, split by prompt, fit, evaluate, write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import write_safely, write_text_safely
from ..lanes import SerialLanes
from ..models.protocol import CausalLM, check_same_vocabulary
from ..predictor import HRad, HRadConfig, Keep, embedding_of, num_layers_of
from .collect import Collection, Examples
from .evaluate import Score, as_object, as_text, evaluate
from .fit import Fit
from .settings import TrainSettings


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    predictor: HRad
    report: dict[str, Any]  # what the JSON file beside the predictor holds
    text: str  # the same for a person


def train_hrad(
    target: CausalLM,
    draft: CausalLM,
    prompts: Sequence[Sequence[int]],
    out: Path,
    settings: TrainSettings | None = None,
    *,
    names: tuple[str, str] = ("", ""),
    work: Path | None = None,
    threads: int | None = None,
) -> Trained:
    """Train a predictor for the pair and write it to ``out``, its figures beside it as JSON.

    Args:
        target, draft: the pair.
        prompts: token ids, of which equal ones count once; those held out are chosen by the seed.
        out: the safetensors file.
        settings: defaults to ``TrainSettings()``.
        names: of target and draft, for people to read in the file.
        work: folder for what an interrupted run leaves; the same call goes on from it. None:
            beside ``out``, and removed in the end.
        threads: CPU cores, all by default.

    Raises:
        ValueError: the target shows no hidden states or not so many layers, there are fewer than
            two prompts, one does not fit, or ``work`` holds another run.
    """
    settings = settings or TrainSettings()
    prompts = list(dict.fromkeys(tuple(prompt) for prompt in prompts))  # none on both sides
    config = _config(target, draft, settings, names)
    folder = work or out.with_name(out.name + ".work")
    lanes = SerialLanes(threads)
    torch.set_num_threads(lanes.threads)
    examples = Collection(target, draft, prompts, settings, folder, lanes, names).run()
    train, held_out = split(examples, len(prompts), settings)
    tensors = Fit(train, embedding_of(target), settings, folder / "fit.pt").run()
    predictor = HRad(config, tensors, target)
    scores = evaluate(predictor, target, train, held_out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_safely(out, predictor.save)
    report = _report(settings, config, train, held_out, scores)
    write_text_safely(report_path(out), json.dumps(report, indent=1) + "\n")
    if work is None:
        shutil.rmtree(folder)
    return Trained(predictor, report, as_text(scores, len(held_out)))


def report_path(out: Path) -> Path:
    """Where the figures go that belong to the predictor in ``out``."""
    if out.suffix == ".safetensors":
        return out.with_suffix(".json")
    return out.with_name(out.name + ".json")


def _config(
    target: CausalLM, draft: CausalLM, settings: TrainSettings, names: tuple[str, str]
) -> HRadConfig:
    width, layers = embedding_of(target).shape[1], num_layers_of(target)
    if layers is not None and settings.layers > layers:
        raise ValueError(f"layers was {settings.layers}; the target has {layers}")
    check_same_vocabulary(target, draft)
    return HRadConfig(settings.layers, width, target.vocab_size, settings.gamma, *names)


def split(
    examples: Examples, num_prompts: int, settings: TrainSettings
) -> tuple[Examples, Examples]:
    """Examples to train on, and those of the prompts that are held out.

    Raises:
        ValueError: one of the two would be empty.
    """
    order = np.random.default_rng([settings.seed, num_prompts]).permutation(num_prompts)
    count = min(num_prompts - 1, max(1, round(settings.held_out * num_prompts)))
    away = torch.isin(examples.prompt, torch.from_numpy(order[:count]))
    train, held_out = examples.rows(~away), examples.rows(away)
    if not len(train) or not len(held_out):
        raise ValueError(
            f"n was {settings.n}; {len(train)} examples to train on and {len(held_out)} held out "
            "are too few: give more prompts or a larger max_new_tokens"
        )
    return train, held_out


def _report(
    settings: TrainSettings,
    config: HRadConfig,
    train: Examples,
    held_out: Examples,
    scores: dict[str, Score],
) -> dict[str, Any]:
    def counts(examples: Examples) -> list[int]:
        found: list[int] = torch.bincount(examples.label, minlength=len(Keep)).tolist()
        return found

    return {
        "pair": {"target": config.target, "draft": config.draft},
        "settings": settings.to_dict(),
        "classes": ["all rejected", "in between", "all accepted"],
        "examples": {"train": counts(train), "held_out": counts(held_out)},
        "held_out": as_object(scores),
    }
