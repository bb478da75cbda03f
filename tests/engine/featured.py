"""A table model with hidden states that say where they come from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specbranch.models.protocol import ForwardOutput
from specbranch.testing.table_model import TableModel, TableState

WIDTH = 3  # token before, token, position


class FeaturedTable(TableModel):
    """Hidden states ``[N, K, 3]``: the token before, the token itself, and its position."""

    @property
    def embedding(self) -> torch.Tensor:
        """``[V, 3]``, so that H-RAD can be trained on it."""
        ids = torch.arange(self.vocab_size).float()
        return torch.stack((ids, ids.square(), torch.ones_like(ids)), 1)

    def new_state(self, max_seq_len: int, tree_slots: int) -> FeaturedState:
        """An empty state."""
        return FeaturedState(self, max_seq_len, tree_slots)


class FeaturedState(TableState):
    """Adds the hidden states to what ``TableState`` gives."""

    def forward(
        self,
        tokens: torch.Tensor,
        parents: Sequence[int] | None = None,
        *,
        hidden_layers: int = 0,
    ) -> ForwardOutput:
        """Append nodes to the tree."""
        first = self.num_nodes
        output = super().forward(tokens, parents)
        if not hidden_layers:
            return output
        rows = [self._describe(first + idx) for idx in range(len(tokens))]
        hidden = torch.tensor(rows, dtype=torch.float32).unsqueeze(1)
        return output._replace(hidden=hidden.repeat(1, hidden_layers, 1))

    def _describe(self, node: int) -> tuple[int, int, int]:
        depth, above = 0, self._parents[node]
        while above >= 0:
            depth, above = depth + 1, self._parents[above]
        return (*self._context(node), self.length + depth)
