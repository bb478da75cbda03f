"""The training corpus: the Python standard library of the running interpreter, split by file."""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_ONE_IN = 40
MAX_FILE_BYTES = 200_000  # larger ones are tables of data
SKIPPED = ("site-packages", "lib2to3", "idlelib", "turtledemo", "encodings", "pydoc_data")


@dataclass(frozen=True)
class Corpus:
    """Source files, those to train on and those never trained on."""

    train: list[Path]
    held_out: list[Path]


def find_corpus(root: Path | None = None) -> Corpus:
    """Split the files below ``root`` (the standard library by default) by a hash of their path."""
    root = root or Path(sysconfig.get_path("stdlib"))
    train: list[Path] = []
    held_out: list[Path] = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if any(part in name for part in SKIPPED) or path.stat().st_size > MAX_FILE_BYTES:
            continue
        digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        (train if digest % HELD_OUT_ONE_IN else held_out).append(path)
    return Corpus(train, held_out)


def read_text(path: Path) -> str:
    """A file's text with unix line ends; empty for the few that are not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""
