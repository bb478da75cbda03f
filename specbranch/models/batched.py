"""A forward of several states of one model: together where the model can, else one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .protocol import CausalLM, DecoderState, ForwardOutput


def forward_batch(
    model: CausalLM,
    states: Sequence[DecoderState],
    tokens: Sequence[torch.Tensor],
    parents: Sequence[Sequence[int] | None],
    *,
    hidden_layers: int = 0,
) -> list[ForwardOutput]:
    """Append ``tokens[i]`` to the tree of ``states[i]``, as its own ``forward`` would.

    ``parents[i]`` and the outputs as for ``DecoderState.forward``. A model without a
    ``forward_batch`` is asked state by state: right, and no faster than that. So is a single state.

    Raises:
        ValueError, TypeError: as ``DecoderState.forward``. A model's own ``forward_batch`` has
            changed no tree then; else the states before the one that failed have grown.
    """
    own = getattr(model, "forward_batch", None)
    if own is not None and len(states) > 1:
        outputs: list[ForwardOutput] = own(states, tokens, parents, hidden_layers=hidden_layers)
        return outputs
    return [
        state.forward(ids, above, hidden_layers=hidden_layers)
        for state, ids, above in zip(states, tokens, parents, strict=True)
    ]
