"""What a replay looks up in a trace, by position and by how far ahead of it."""

from __future__ import annotations

from typing import cast

import numpy as np

from ..predictor import Keep
from .trace import Trace

OFF_TEXT = -1  # a drafted token that is not the text; no text has it
GOLDEN = 0.6180339887498949


class Lookup:
    """A trace in Python's own numbers, and the lines that rollouts and text make together."""

    def __init__(self, trace: Trace) -> None:
        self.trace, self.length = trace, len(trace)
        self.tokens, self.rank = trace.tokens, trace.rank.tolist()
        self.keep = [*trace.keep.tolist(), Keep.NOTHING]  # behind the last token all is the same
        self._rows = {
            name: getattr(trace, name).tolist()
            for name in ("confidence", "entropy", "support", "drafted_rank")
        }
        first = (trace.accepted > 0).tolist()
        self._rejected = [idx for idx, held in enumerate(first) if not held]
        self.run = [0] * (len(first) + 1)  # without the limit of the rollout's length
        for idx in range(len(first) - 1, -1, -1):
            self.run[idx] = self.run[idx + 1] + 1 if first[idx] else 0

    def stand_ins(self, point: int, count: int) -> list[int]:
        """Positions with a rejected token, to stand in for siblings at ``point``; always the same.

        From all over the trace: strides of the golden ratio are spread evenly.
        """
        rows = self._rejected
        firsts = (int(len(rows) * ((point * 32 + idx) * GOLDEN % 1.0)) for idx in range(count))
        return [rows[first] for first in firsts] if rows else []

    def drafted(self, at: int, offset: int, count: int) -> list[int]:
        """Tokens ``offset ..`` of what is drafted behind position ``at``."""
        on_text = max(0, min(count, self.run[at] - offset))
        first = at + offset
        return self.tokens[first : first + on_text] + [OFF_TEXT] * (count - on_text)

    def fact(self, name: str, at: int, offset: int, unknown: float) -> float:
        """Of the row of token ``offset`` of that line; ``unknown`` past the rollout's length."""
        hop = min(offset, self.run[at])
        rows = self._rows[name]
        if at + hop >= self.length or offset - hop >= len(rows[0]):
            return unknown
        return cast(float, rows[at + hop][offset - hop])

    def confidence(self, at: int, offset: int) -> float:
        """The draft's largest probability; where it is not known the draft is taken to be sure."""
        return self.fact("confidence", at, offset, 1.0)

    def num_candidates(self, k_max: int, at: int, offset: int) -> int:
        """Branches that ``ops.branch_topk`` would offer: its arithmetic, in float32."""
        unsure = np.float32(1.0) - np.float32(self.confidence(at, offset))
        wanted = max(1, int(np.float32(k_max) * unsure))
        return min(wanted, int(self.fact("support", at, offset, 1)))
