"""A draft that is deliberately worse than the one it is made of: noise in its weights.

    python bench/worse_draft.py --sigma 0.25 --out FOLDER    # a checkpoint directory

Every matrix gets normal noise, ``sigma`` times the standard deviation of its own entries; norms
stay as they are. The cost of a forward is that of the draft it is made of, its guesses are not.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from specbranch.models import LlamaModel, model_from_tensors
from specbranch.models.config import read_config
from specbranch.pair import DEMO_DIR

SIGMA = 0.25


def noisy_tensors(folder: Path, sigma: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """The tensors of ``folder``'s model.safetensors, their matrices with noise in float32."""
    rng = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    for name in sorted(tensors):
        weight = tensors[name].float()
        if weight.dim() == 2:
            weight += sigma * weight.std() * torch.randn(weight.shape, generator=rng)
        tensors[name] = weight
    return tensors


def noisy_draft(sigma: float = SIGMA, folder: Path = DEMO_DIR / "draft") -> LlamaModel:
    """The draft with noise, on the CPU in float32."""
    return model_from_tensors(read_config(folder), noisy_tensors(folder, sigma), dtype="float32")


def main() -> int:
    """Write a checkpoint directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sigma", type=float, default=SIGMA)
    parser.add_argument("--source", type=Path, default=DEMO_DIR / "draft", metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in args.source.glob("*.json"):
        shutil.copy(path, args.out / path.name)
    save_file(noisy_tensors(args.source, args.sigma), args.out / "model.safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
