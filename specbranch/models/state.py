"""A state over a slot cache: what is the same for every model that keeps its keys in slots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

from ..cache import SlotCache
from ..tree import SpeculationTree
from .protocol import ForwardOutput

PREFILL_CHUNK = 256


class HasLayers(Protocol):
    """A config that says how many decoder layers there are."""

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        ...


class SlotModel(Protocol):
    """What a state asks of its model."""

    vocab_size: int
    max_seq_len: int
    device: torch.device

    @property
    def config(self) -> HasLayers:
        """Sizes."""
        ...


def check_room(model: SlotModel, max_seq_len: int, tree_slots: int) -> None:
    """Refuse a state that the model cannot fill.

    Raises:
        ValueError: ``max_seq_len`` beyond the model's own, or negative ``tree_slots``.
    """
    if tree_slots < 0:
        raise ValueError(f"tree_slots was {tree_slots}; it must be at least 0")
    if not 1 <= max_seq_len <= model.max_seq_len:
        raise ValueError(f"max_seq_len was {max_seq_len}; it must be in 1 .. {model.max_seq_len}")


class TreeState(ABC):
    """Cache and pending tree of one request; a ``DecoderState``.

    Args:
        model: whose tokens and positions are checked against.
        cache: slots for the prefix and, behind it, the tree.
        max_seq_len: most tokens of the prefix.
        tree_slots: most pending nodes.
    """

    model: SlotModel

    def __init__(
        self, model: SlotModel, cache: SlotCache, max_seq_len: int, tree_slots: int
    ) -> None:
        self.model, self.cache, self._capacity = model, cache, max_seq_len
        self.tree = SpeculationTree(tree_slots)

    @property
    def length(self) -> int:
        """Tokens of the prefix."""
        return self.cache.length

    @property
    def num_nodes(self) -> int:
        """Pending nodes."""
        return len(self.tree)

    # ------------------------------------------------------------------ protocol
    def prefill(self, tokens: torch.Tensor) -> None:
        """Extend the prefix by ``tokens [n]``, in chunks; the head is not computed."""
        if self.num_nodes:
            raise ValueError(f"prefill with {self.num_nodes} pending nodes; commit or roll back")
        self._check_tokens(tokens)
        if len(tokens) == 0:
            return
        if self.length + len(tokens) > self._capacity:
            raise ValueError(
                f"tokens had {len(tokens)} entries after a prefix of {self.length}; "
                f"together they must be at most {self._capacity}"
            )
        self._check_ids(tokens)
        with torch.inference_mode():
            for begin in range(0, len(tokens), PREFILL_CHUNK):
                chunk = tokens[begin : begin + PREFILL_CHUNK]
                self._read(chunk)
                self.cache.length += len(chunk)

    def forward(
        self,
        tokens: torch.Tensor,
        parents: Sequence[int] | None = None,
        *,
        hidden_layers: int = 0,
    ) -> ForwardOutput:
        """Append ``tokens [N]`` to the tree; logits ``[N, V]`` and the last layers' outputs."""
        first = self._grow(tokens, parents, hidden_layers)
        try:
            with torch.inference_mode():
                return self._read_nodes(tokens, first, hidden_layers)
        except Exception:
            self.tree.truncate(first)
            raise

    def _grow(self, tokens: torch.Tensor, parents: Sequence[int] | None, hidden_layers: int) -> int:
        """Check what a forward was given and add the nodes; returns how many there were."""
        self._check_tokens(tokens)
        if len(tokens) == 0:
            raise ValueError("tokens was empty; it must have at least one token")
        num_layers = self.model.config.num_layers
        if not 0 <= hidden_layers <= num_layers:
            raise ValueError(f"hidden_layers was {hidden_layers}; it must be in 0 .. {num_layers}")
        if self._ids_need_a_check(tokens):
            self._check_ids(tokens)
        first = len(self.tree)
        self.tree.grow(len(tokens), parents)
        try:
            self._check_depth(first)
        except ValueError:
            self.tree.truncate(first)
            raise
        return first

    def commit(self, path: Sequence[int]) -> None:
        """Append a path of pending nodes to the prefix."""
        self.tree.check_path(path)
        if self.length + len(path) > self._capacity:
            raise ValueError(
                f"path had {len(path)} nodes after a prefix of {self.length}; "
                f"together they must be at most {self._capacity}"
            )
        self.cache.commit(path)
        self.tree.clear()

    def rollback(self, length: int) -> None:
        """Cut the prefix to ``length``."""
        self.cache.rollback(length)
        self.tree.clear()

    # ------------------------------------------------------------------ a model's own
    @abstractmethod
    def _read(self, chunk: torch.Tensor) -> None:
        """Fill the slots behind the prefix with ``chunk [n]``; the caller moves the length."""

    @abstractmethod
    def _read_nodes(self, tokens: torch.Tensor, first: int, hidden_layers: int) -> ForwardOutput:
        """Run ``tokens [N]``, which are the tree's nodes from ``first`` on."""

    def _ids_need_a_check(self, tokens: torch.Tensor) -> bool:
        """Whether token ids must be checked before the model reads them."""
        return tokens.device.type == "cpu"

    # ------------------------------------------------------------------ checks
    def _check_tokens(self, tokens: torch.Tensor) -> None:
        if not isinstance(tokens, torch.Tensor):
            raise TypeError(f"tokens was {type(tokens).__name__}; it must be a torch tensor [n]")
        if tokens.dim() != 1 or tokens.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"tokens was {tokens.dtype} {list(tokens.shape)}; it must be int32 or int64 [n]"
            )

    def _check_ids(self, tokens: torch.Tensor) -> None:
        low, high = (int(bound) for bound in tokens.aminmax())
        if low < 0 or high >= self.model.vocab_size:
            raise ValueError(self._bad_ids(tokens))

    def _bad_ids(self, tokens: torch.Tensor) -> str:
        return (
            f"tokens had ids {int(tokens.min())} .. {int(tokens.max())}; "
            f"they must be in 0 .. {self.model.vocab_size - 1}"
        )

    def _check_depth(self, first: int) -> None:
        deepest = self.length + max(self.tree.depths[first:], default=0)
        if deepest >= self.model.max_seq_len:
            raise ValueError(
                f"tokens would reach position {deepest}; positions must be below "
                f"{self.model.max_seq_len}"
            )


State = TypeVar("State", bound=TreeState)


def forward_together(
    states: Sequence[State],
    tokens: Sequence[torch.Tensor],
    parents: Sequence[Sequence[int] | None],
    hidden_layers: int,
    read: Callable[[Sequence[State], Sequence[torch.Tensor], Sequence[int], int], ForwardOutput],
) -> list[ForwardOutput]:
    """A forward of several states, each checked as in its own; one that fails changes none.

    ``read(states, tokens, firsts, hidden_layers)`` runs them: outputs of all rows, one state's
    after the other's.

    Raises:
        ValueError, TypeError: as ``TreeState.forward``; or a state that is there twice.
    """
    if len({id(state) for state in states}) < len(states):
        raise ValueError("states had the same state twice; each must be another one")
    firsts: list[int] = []
    try:
        for state, ids, above in zip(states, tokens, parents, strict=True):
            firsts.append(state._grow(ids, above, hidden_layers))
        with torch.inference_mode():
            logits, hidden = read(states, tokens, firsts, hidden_layers)
    except Exception:
        for state, first in zip(states, firsts, strict=False):
            state.tree.truncate(first)
        raise
    sizes = [len(ids) for ids in tokens]
    if hidden is None:
        return [ForwardOutput(rows, None) for rows in torch.split(logits, sizes)]
    return list(map(ForwardOutput, torch.split(logits, sizes), torch.split(hidden, sizes)))
