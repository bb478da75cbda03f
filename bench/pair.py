"""The pair of models that a benchmark is told to take: the demo pair or another, or inflated."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from inflate import Inflation
from methods import Weights
from shapes import SHAPES, check_fits, named_shape

from specbranch import ops
from specbranch.models.config import read_config
from specbranch.pair import DEMO_DIR


def add_flags(parser: argparse.ArgumentParser) -> None:
    """``--dtype``, ``--inflate``, ``--target``, ``--draft``; ``--device`` is up to the caller."""
    add = parser.add_argument
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add(
        "--inflate",
        nargs=2,
        choices=SHAPES,
        metavar=("TARGET", "DRAFT"),
        help=f"sizes to inflate the pair to: {', '.join(SHAPES)}",
    )
    add("--target", type=Path, metavar="DIR", help="default: the demo pair")
    add("--draft", type=Path, metavar="DIR")


def weights_of(args: argparse.Namespace) -> tuple[Weights, Weights]:
    """Target and draft as the command line wants them.

    Raises:
        FileNotFoundError, ValueError: there is no such device here, or a checkpoint does not fit.
    """
    _check_device(args.device)
    folders = args.target or DEMO_DIR / "target", args.draft or DEMO_DIR / "draft"
    for folder, shape in zip(folders, args.inflate or (), strict=False):
        try:
            check_fits(read_config(folder), named_shape(shape))
        except ValueError as error:
            raise ValueError(f"--inflate {shape}: {error}") from error
    target, draft = (
        Weights(folder, args.device, args.dtype, shape)
        for folder, shape in zip(folders, args.inflate or (None, None), strict=True)
    )
    return target, draft


def _check_device(device: str) -> None:
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise ValueError(f"--device was {device}; it must be cpu, cuda or cuda:N")
    if device == "cpu":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise ValueError(f"--device was {device}, but no CUDA device was found; use cpu")
    if (torch.device(device).index or 0) >= count:
        raise ValueError(f"--device was {device}, but there are {count} CUDA devices")
    if not ops.backends()["cuda"]:
        raise ValueError(f"--device was {device}, but this build has no CUDA kernels")


def inflated_sizes(weights: tuple[Weights, Weights]) -> dict[str, Any] | None:
    """Sizes of an inflated pair, None for one that is what it is."""
    if weights[0].shape is None:
        return None
    pair = zip(("target", "draft"), weights, strict=True)
    return {name: _sizes(each.shape, each.inflation()) for name, each in pair}


def _sizes(shape: str | None, inflation: Inflation) -> dict[str, Any]:
    sizes = {"shape": shape, "parameters": inflation.num_parameters}
    return sizes | dataclasses.asdict(inflation.shape) | {"source": inflation.folder.name}
