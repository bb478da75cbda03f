"""A language model that is a table: its exact sequence distribution is known.

Order-2 Markov: the distribution of the next token depends on the two tokens before it. Used to test
whole engines against exact probabilities, where a real model's are out of reach.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from ..models.protocol import ForwardOutput


class TableModel:
    """A ``CausalLM`` whose logits are ``table[a, b]`` after the tokens ``a, b``.

    Args:
        logits: ``[V, V, V]`` float; ``-inf`` is a token that never follows.
        max_seq_len: most tokens of prompt and output together.
    """

    def __init__(self, logits: torch.Tensor, *, max_seq_len: int = 4096) -> None:
        self.table = logits.to(torch.float32).contiguous()
        self.vocab_size = int(logits.shape[-1])
        self.max_seq_len = max_seq_len
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def random(cls, vocab: int, seed: int, *, scale: float = 1.0) -> TableModel:
        """A table of normal logits; a larger ``scale`` makes sharper distributions."""
        generator = torch.Generator().manual_seed(seed)
        return cls(scale * torch.randn(vocab, vocab, vocab, generator=generator))

    def new_state(self, max_seq_len: int, tree_slots: int) -> TableState:
        """An empty state."""
        return TableState(self, max_seq_len, tree_slots)

    def probabilities(self, temperature: float = 1.0) -> np.ndarray:
        """``[V, V, V]`` float64 distribution of the next token."""
        logits = self.table.double() / temperature
        return torch.softmax(logits, -1).numpy()

    def sequence_distribution(
        self, prompt: Sequence[int], length: int, probabilities: np.ndarray | None = None
    ) -> np.ndarray:
        """Exact probability of each of the ``V ** length`` continuations, in lexical order."""
        table = self.probabilities() if probabilities is None else probabilities
        out = np.empty(self.vocab_size**length)
        for idx, tokens in enumerate(itertools.product(range(self.vocab_size), repeat=length)):
            context, probability = tuple(prompt[-2:]), 1.0
            for token in tokens:
                probability *= table[context[0], context[1], token]
                context = (context[1], token)
            out[idx] = probability
        return out


class TableState:
    """Prefix and pending tree of one request over a ``TableModel``."""

    def __init__(self, model: TableModel, max_seq_len: int, tree_slots: int) -> None:
        self._model = model
        self._max_seq_len, self._tree_slots = max_seq_len, tree_slots
        self._prefix: list[int] = []
        self._tokens: list[int] = []
        self._parents: list[int] = []

    @property
    def length(self) -> int:
        """Tokens of the prefix."""
        return len(self._prefix)

    @property
    def num_nodes(self) -> int:
        """Pending tree nodes."""
        return len(self._tokens)

    def prefill(self, tokens: torch.Tensor) -> None:
        """Extend the prefix."""
        assert not self._tokens, "prefill with pending nodes"
        self._prefix += tokens.tolist()
        assert self.length <= self._max_seq_len, "prefix longer than the state"

    def forward(
        self,
        tokens: torch.Tensor,
        parents: Sequence[int] | None = None,
        *,
        hidden_layers: int = 0,
    ) -> ForwardOutput:
        """Append nodes to the tree; logits ``[N, V]`` of the token after each."""
        first = self.num_nodes
        new = tokens.tolist()
        if parents is None:
            parents = range(first - 1, first - 1 + len(new))
        self._tokens += new
        self._parents += parents
        assert self.num_nodes <= self._tree_slots, "more nodes than tree slots"
        rows = [self._context(first + idx) for idx in range(len(new))]
        before, last = zip(*rows, strict=True)
        return ForwardOutput(self._model.table[list(before), list(last)], None)

    def _context(self, node: int) -> tuple[int, int]:
        parent = self._parents[node]
        assert parent < node, "a parent that is not before its child"
        before = self._tokens[parent] if parent >= 0 else self._prefix[-1]
        return before, self._tokens[node]

    def commit(self, path: Sequence[int]) -> None:
        """Make ``path`` part of the prefix, drop all other nodes."""
        above = -1
        for node in path:
            assert self._parents[node] == above, "path is not a path"
            above = node
        self._prefix += [self._tokens[node] for node in path]
        self._tokens, self._parents = [], []

    def rollback(self, length: int) -> None:
        """Cut the prefix, drop all nodes."""
        assert 0 <= length <= self.length, "rollback past the prefix"
        del self._prefix[length:]
        self._tokens, self._parents = [], []
