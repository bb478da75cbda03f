"""A draft whose vocabulary is padded to another size than the target's: its logits made to fit.

Models of one family share a tokenizer and pad their vocabularies to different multiples. What
matters are the tokens, not the padding: rows that the draft lacks get no probability, rows that the
target lacks are dropped, and the softmax of what is left is the draft's distribution. Any
distribution of the draft is allowed, so the output stays the target's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .batched import forward_batch
from .protocol import CausalLM, DecoderState, ForwardOutput
from .wrapped import WrappedState

NEVER = float("-inf")


def match_vocabulary(draft: CausalLM, target_vocab_size: int) -> CausalLM:
    """The draft with ``target_vocab_size`` tokens; itself where that is what it has.

    Whether the two speak of the same tokens is for ``check_same_tokenizer`` to find out.

    Args:
        draft: any model.
        target_vocab_size: of the target it is to draft for.

    Raises:
        TypeError, ValueError: the size is no integer, or not positive.
    """
    if isinstance(target_vocab_size, bool) or not isinstance(target_vocab_size, int):
        raise TypeError(f"target_vocab_size was {target_vocab_size!r}; it must be an integer")
    if target_vocab_size < 1:
        raise ValueError(f"target_vocab_size was {target_vocab_size}; it must be at least 1")
    if draft.vocab_size == target_vocab_size:
        return draft
    return PaddedModel(draft, target_vocab_size)


class PaddedModel:
    """``model`` with another number of tokens; a ``CausalLM``.

    Args:
        model: the draft.
        vocab_size: the target's.
    """

    def __init__(self, model: CausalLM, vocab_size: int) -> None:
        self.model, self.vocab_size = model, vocab_size
        self.max_seq_len, self.eos_token_ids = model.max_seq_len, model.eos_token_ids
        self.device, self.dtype = model.device, model.dtype

    @property
    def embedding(self) -> torch.Tensor | None:
        """The draft's own, by which it is told from others."""
        found: torch.Tensor | None = getattr(self.model, "embedding", None)
        return found

    def new_state(self, max_seq_len: int, tree_slots: int) -> PaddedState:
        """An empty state of the model."""
        return PaddedState(self, self.model.new_state(max_seq_len, tree_slots))

    def forward_batch(
        self,
        states: Sequence[PaddedState],
        tokens: Sequence[torch.Tensor],
        parents: Sequence[Sequence[int] | None],
        *,
        hidden_layers: int = 0,
    ) -> list[ForwardOutput]:
        """A forward of several states, by the draft's own means; see ``batched``."""
        known = [state._known(ids) for state, ids in zip(states, tokens, strict=True)]
        inner = [state.state for state in states]
        outputs = forward_batch(self.model, inner, known, parents, hidden_layers=hidden_layers)
        pairs = zip(states, outputs, strict=True)
        return [ForwardOutput(state._fitted(out.logits), out.hidden) for state, out in pairs]


class PaddedState(WrappedState):
    """The model's own state, between tokens and logits of another size; a ``DecoderState``."""

    def __init__(self, model: PaddedModel, state: DecoderState) -> None:
        super().__init__(state)
        self.model = model

    def prefill(self, tokens: torch.Tensor) -> None:
        """Extend the prefix."""
        self.state.prefill(self._known(tokens))

    def forward(
        self,
        tokens: torch.Tensor,
        parents: Sequence[int] | None = None,
        *,
        hidden_layers: int = 0,
    ) -> ForwardOutput:
        """Append ``tokens [N]`` to the tree; logits ``[N, V]`` of the target's V tokens."""
        logits, hidden = self.state.forward(
            self._known(tokens), parents, hidden_layers=hidden_layers
        )
        return ForwardOutput(self._fitted(logits), hidden)

    def _known(self, tokens: torch.Tensor) -> torch.Tensor:
        """Padding that only the target has, as a token that the draft has: it must read something.

        Ids that are no token of the target either stay, for the draft's state to refuse.
        """
        ours, theirs = self.model.model.vocab_size, self.model.vocab_size
        if theirs <= ours or not isinstance(tokens, torch.Tensor):
            return tokens
        return tokens.masked_fill((tokens >= ours) & (tokens < theirs), ours - 1)

    def _fitted(self, logits: torch.Tensor) -> torch.Tensor:
        more = self.model.vocab_size - logits.shape[-1]
        if more < 0:
            return logits[:, : self.model.vocab_size].contiguous()
        return torch.nn.functional.pad(logits, (0, more), value=NEVER)
