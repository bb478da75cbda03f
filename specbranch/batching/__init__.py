"""Several requests that share their forwards; see docs/batches.md."""

from __future__ import annotations

from .batch import Batch, BatchReport
from .hub import Hub
from .shared import SharedModel

__all__ = ["Batch", "BatchReport", "Hub", "SharedModel"]
