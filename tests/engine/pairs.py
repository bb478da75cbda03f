"""A tiny pair on one device or on two, and the ways to decode with it."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_checkpoint import save_checkpoint

from specbranch import load_model, ops
from specbranch.models.llama import LlamaModel

Models = tuple[LlamaModel, LlamaModel]

#: Torch keeps tensors of both in one memory; the engine takes them for two devices.
TARGET, DRAFT = torch.device("cpu", 0), torch.device("cpu", 1)
WAYS = {
    "greedy": ({"temperature": 0.0}, {}),
    "sampled": ({"temperature": 1.0}, {}),
    "cut": ({"temperature": 0.9, "top_k": 40, "top_p": 0.95}, {}),
    "coupled": ({"temperature": 1.0}, {"verify": "coupled"}),
}


def save(folder: Path) -> Path:
    for name in "td":
        save_checkpoint(folder / name, hidden_size=64, num_layers=2, seed=0)
    return folder


def load(
    folder: Path, devices: tuple[torch.device, torch.device], backend: ops.Backend | None = None
) -> Models:
    """A draft that is the target with noise: right often, wrong often."""
    target, draft = (load_model(folder / name, backend=backend) for name in "td")
    noise = torch.Generator().manual_seed(1)
    draft.embedding.add_(0.08 * torch.randn(draft.embedding.shape, generator=noise))
    target.device, draft.device = devices
    return target, draft
