"""Files of our own: written whole or not at all; tensors with a note of their kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open


def write_safely(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a neighbour, then rename: an interruption leaves no half file behind."""
    part = path.with_name(path.name + ".part")
    write(part)
    os.replace(part, path)


def write_text_safely(path: Path, text: str) -> None:
    """``write_safely`` of text, in UTF-8 and with the line ends that it has."""
    write_safely(path, lambda part: part.write_text(text, encoding="utf-8", newline=""))


def read_tensors(path: Path, framework: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Metadata and all tensors of a safetensors file, as ``framework``'s (``pt``, ``numpy``).

    Raises:
        ValueError: it is no such file.
        OSError: it cannot be read.
    """
    try:
        with safe_open(path, framework=framework) as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
