"""What the engine asks of a model: a ``CausalLM`` makes states, and a state grows a tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch


class ForwardOutput(NamedTuple):
    """Result of a forward over N tree nodes.

    ``logits`` ``[N, V]``: row i is the distribution of the token after node i; may alias a buffer
    that the next forward overwrites. ``hidden`` ``[N, K, d]``: outputs of the last K decoder layers
    (before the final norm), None unless asked for.
    """

    logits: torch.Tensor
    hidden: torch.Tensor | None


class DecoderState(Protocol):
    """A request's cache: a contiguous prefix, and behind it the nodes of a speculation tree."""

    @property
    def length(self) -> int:
        """Tokens of the prefix."""
        ...

    @property
    def num_nodes(self) -> int:
        """Pending nodes, not part of the prefix yet."""
        ...

    def prefill(self, tokens: torch.Tensor) -> None:
        """Extend the prefix by ``tokens [n]``; only with no pending nodes."""
        ...

    def forward(
        self,
        tokens: torch.Tensor,
        parents: Sequence[int] | None = None,
        *,
        hidden_layers: int = 0,
    ) -> ForwardOutput:
        """Append ``tokens [N]`` to the pending tree.

        ``parents[i]`` is the index of a pending node, old or new, that comes before; -1 is the end
        of the prefix. None: a chain that goes on from the last pending node.
        """
        ...

    def commit(self, path: Sequence[int]) -> None:
        """Append a path of pending nodes from the root to the prefix, drop all other nodes."""
        ...

    def rollback(self, length: int) -> None:
        """Cut the prefix to ``length`` tokens, drop all pending nodes."""
        ...


class CausalLM(Protocol):
    """A model; any object of this shape will do (``testing/table_model.py`` is a small one)."""

    vocab_size: int
    max_seq_len: int
    device: torch.device
    dtype: torch.dtype  # of the logits
    eos_token_ids: tuple[int, ...]

    def new_state(self, max_seq_len: int, tree_slots: int) -> DecoderState:
        """An empty state with room for a prefix of ``max_seq_len`` and ``tree_slots`` nodes."""
        ...


def check_same_vocabulary(target: CausalLM, draft: CausalLM) -> None:
    """Refuse a draft whose tokens are not the target's.

    Raises:
        ValueError: naming both sizes.
    """
    if draft.vocab_size != target.vocab_size:
        raise ValueError(
            f"draft has a vocabulary of {draft.vocab_size} tokens; "
            f"it must be the target's {target.vocab_size} (models.match_vocabulary pads it)"
        )
