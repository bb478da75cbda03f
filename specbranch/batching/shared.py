"""Models as the requests of a batch see them: what they ask for goes to the hub."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..drafting import DraftRequest
from ..models.protocol import DecoderState, ForwardOutput
from ..models.wrapped import WrappedState
from .hub import Desk, ForwardWish, Hub


class SharedModel:
    """A model of the hub's; a ``CausalLM``.

    Args:
        hub: who grants what its states ask for.
        desk: the model's.
    """

    def __init__(self, hub: Hub, desk: Desk) -> None:
        model = desk.model
        self.vocab_size, self.max_seq_len = model.vocab_size, model.max_seq_len
        self.device, self.dtype = model.device, model.dtype
        self.eos_token_ids = model.eos_token_ids
        self._hub, self._desk = hub, desk

    def new_state(self, max_seq_len: int, tree_slots: int) -> SharedState:
        """An empty state of the model."""
        state = self._desk.model.new_state(max_seq_len, tree_slots)
        drafts = hasattr(state, "draft_steps") and hasattr(self._desk.model, "draft_batch")
        kind = DraftingState if drafts else SharedState
        return kind(self._hub, self._desk, state)


class SharedState(WrappedState):
    """A request's own state, whose forwards are run with those of others; a ``DecoderState``."""

    def __init__(self, hub: Hub, desk: Desk, state: DecoderState) -> None:
        super().__init__(state)
        self._hub, self._desk = hub, desk

    def prefill(self, tokens: torch.Tensor) -> None:
        """Extend the prefix; by itself."""
        self.state.prefill(tokens)

    def forward(
        self,
        tokens: torch.Tensor,
        parents: Sequence[int] | None = None,
        *,
        hidden_layers: int = 0,
    ) -> ForwardOutput:
        """Append ``tokens [N]`` to the tree, when the hub runs the forward."""
        wish = ForwardWish(self.state, tokens, parents, hidden_layers)
        output: ForwardOutput = self._hub.ask(self._desk.forwards, wish)
        return output


class DraftingState(SharedState):
    """One whose model drafts for several at a time."""

    def draft_steps(self, request: DraftRequest) -> int:
        """See ``drafting.draft_steps``."""
        wish = request._replace(state=self.state)
        taken: int = self._hub.ask(self._desk.drafts, wish)
        return taken
