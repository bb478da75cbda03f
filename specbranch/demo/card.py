# ruff: noqa: E501 (the card is a page of prose)
"""The model card of a trained pair, written from what was measured."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measured:
    """Figures on the held-out files."""

    tokens: int
    target_loss: float  # nats per token
    draft_loss: float
    target_bits_per_byte: float
    draft_bits_per_byte: float
    alpha_1: float  # expected acceptance at temperature 1
    alpha_07: float  # at temperature 0.7
    greedy_agreement: float


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write_card(
    path: Path,
    measured: Measured,
    parameters: dict[str, int],
    data: dict[str, tuple[int, int]],
    steps: dict[str, int],
    budget: dict[str, float],
) -> None:
    """Write the card; ``data`` maps a split to its files and tokens."""
    flags = " ".join(
        f"--{key.replace('_', '-')}" + ("" if value is True else f" {value}")
        for key, value in budget.items()
        if value is not False
    )
    trained = budget["batch"] * budget["context"]
    text = f"""# SpecBranch demo pair

A target of {parameters["target"]:,} and a draft of {parameters["draft"]:,} parameters (Llama architecture, tied
embeddings, stored as bfloat16) with one byte-level BPE tokenizer of {budget["vocab"]} tokens. They complete Python code,
are an example of a pair and a test bed for speculative decoding, and nothing to rely on.

## Data
The standard library of CPython {platform.python_version()}, split by file: {data["train"][0]:,} files ({data["train"][1]:,} tokens)
to train on, {data["held-out"][0]} files ({data["held-out"][1]:,} tokens) held out. The draft was distilled from the target on the
same training files.

## Training
    python -m specbranch.demo.train {flags}

Target: {steps["target"]:,} steps ({steps["target"] * trained:,} tokens) of Muon and AdamW; draft: {steps["draft"]:,} steps
({steps["draft"] * trained:,} tokens), KL divergence to the target. Steps are those of all runs where one was
interrupted or gone on from (`--start`), the flags those of the last; minutes are wall time: a faster machine trains further. Machine: {cpu_name()}, {os.cpu_count()} cores, no GPU.

## Measured on the held-out files ({measured.tokens:,} tokens, windows of 512, float32)
| | target | draft |
| --- | --- | --- |
| loss, nats per token | {measured.target_loss:.3f} | {measured.draft_loss:.3f} |
| bits per byte | {measured.target_bits_per_byte:.3f} | {measured.draft_bits_per_byte:.3f} |

| acceptance rate expected of this pair | |
| --- | --- |
| temperature 1, mean of sum over tokens of min(target, draft) | {measured.alpha_1:.3f} |
| temperature 0.7 | {measured.alpha_07:.3f} |
| greedy, both have the same most likely token | {measured.greedy_agreement:.3f} |

## Licence
Weights and tokenizer: Apache-2.0, like the package. The standard library they were trained on is under the PSF licence.
"""
    path.write_text(text)
