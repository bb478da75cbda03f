"""A progress bar on stderr: tqdm's where it is installed, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """``with Progress("collect", total, done) as bar: bar.step(note)``.

    Args:
        label: what is going on.
        total: steps from the beginning to the end.
        done: steps that an earlier run has done already.
    """

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self._label, self._total, self._done = label, total, done
        self._bar, self._last_line = _bar(label, total, done), 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *unused: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, note: str = "") -> None:
        """One step is done; ``note`` stands behind the bar."""
        self._done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update()
            return
        now = time.monotonic()
        if self._done == self._total or now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            sys.stderr.write(f"{self._label} {self._done}/{self._total} {note}".rstrip() + "\n")
            sys.stderr.flush()


def _bar(label: str, total: int, done: int) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, initial=done, desc=label)
