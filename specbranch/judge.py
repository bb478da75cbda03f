"""Hands a chain, its branches and the target's logits to ``ops.verify``, a tree to another op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from . import ops
from .drafting import Sampler
from .sampling_params import SamplingParams
from .staging import Staged

if TYPE_CHECKING:
    from .session import Chain, Settings

Numbers = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class Judge:
    """What ``ops.verify`` reads and writes for one request; batch 1.

    A chain's numbers and verdict have tensors of their own: its rounds allocate nothing for them.

    Args:
        params, settings: of the request.
        device: of the target's logits.
        max_rows: most rows of logits at a time.
    """

    def __init__(
        self, params: SamplingParams, settings: Settings, device: torch.device, max_rows: int
    ) -> None:
        self._gamma, self._draw, self._device = settings.gamma, settings.draw, device
        self._sampler = Sampler(params, settings.draw, max_rows, device)
        self._staged = Staged(settings.gamma + settings.k_max + 2, device)
        self._parts: dict[tuple[int, int], Numbers] = {}
        self._verdict = torch.empty(3, dtype=torch.int32, device=device)
        self._out = tuple(self._verdict.view(3, 1))

    def judge(
        self, target_logits: torch.Tensor, chain: Chain, candidates: Sequence[int], position: int
    ) -> tuple[int, int, int]:
        """Accepted count, next token and surviving branch.

        ``target_logits [m + 1, V]``; ``position`` is that of the chain's first token.
        """
        if chain.is_guess:
            parents = range(-1, len(chain) - 1)
            path, token = self.match(target_logits, chain.tokens, parents, position)
            return len(path), token, -1
        sampler = self._sampler
        sampler.place(position)
        target_cutoff = sampler.cut(target_logits)
        tokens, length, branches, num_branches = self._numbers(chain.tokens, candidates)
        temperature, seed, at = sampler.row
        ops.verify(
            target_logits.unsqueeze(0),
            self._of_chain(chain.logits),
            tokens,
            length,
            branches,
            num_branches,
            temperature,
            seed,
            at,
            target_cutoff=None if target_cutoff is None else target_cutoff.unsqueeze(0),
            draft_cutoff=self._of_chain(chain.cutoff),
            draw=self._draw,
            out=self._out,
        )
        accepted, token, survivor = self._verdict.tolist()
        return accepted, token, survivor

    def match(
        self,
        target_logits: torch.Tensor,
        tokens: Sequence[int],
        parents: Sequence[int],
        position: int,
    ) -> tuple[list[int], int]:
        """Accepted nodes from the root down, and the target's token after them (-1: bad row).

        For a tree of tokens that were not drawn at random: the target draws at each position, and
        the walk goes on where a child is what it drew. ``target_logits [N + 1, V]``: row 0 follows
        the prefix, row i + 1 node i.
        """
        sampler, device = self._sampler, self._device
        sampler.place(position)
        cutoff = sampler.cut(target_logits)
        numbers = torch.tensor([[tokens, parents]], dtype=torch.int32).view(2, 1, len(tokens))
        numbers = numbers.to(device)
        temperature, seed, at = sampler.row
        accepted, path, token = ops.verify_tree(
            target_logits.unsqueeze(0),
            None,
            numbers[0],
            numbers[1],
            torch.full((1,), len(tokens), dtype=torch.int32, device=device),
            temperature,
            seed,
            at,
            target_cutoff=None if cutoff is None else cutoff.unsqueeze(0),
            draw=self._draw,
        )
        return path[0, : int(accepted)].tolist(), int(token)

    def _of_chain(self, rows: torch.Tensor | None) -> torch.Tensor | None:
        return None if rows is None else rows.to(self._device).unsqueeze(0)

    def _numbers(self, chain: Sequence[int], candidates: Sequence[int]) -> Numbers:
        """Chain ``[1, m]``, its length ``[1]``, candidates ``[1, k]``, their number ``[1]``."""
        num_chain, num_branches, middle = len(chain), len(candidates), self._gamma + 1
        view = self._staged.view
        view[0], view[1 : 1 + num_chain] = num_chain, chain
        view[middle], view[middle + 1 : middle + 1 + num_branches] = num_branches, candidates
        self._staged.upload()
        parts = self._parts.get((num_chain, num_branches))
        if parts is None:
            numbers = self._staged.tensor
            parts = self._parts[num_chain, num_branches] = (
                numbers[1 : 1 + num_chain].view(1, -1),
                numbers[:1],
                numbers[middle + 1 : middle + 1 + num_branches].view(1, -1),
                numbers[middle : middle + 1],
            )
        return parts
