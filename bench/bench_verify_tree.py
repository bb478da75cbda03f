"""``verify_tree`` (deterministic candidates) against sampling and walking the tree in PyTorch."""

from __future__ import annotations

import pytest
import torch
from conftest import num_bytes

from specbranch import ops

TEMPERATURE = 0.7


def plain(target: torch.Tensor, tokens: list[int], parents: list[int]) -> int:
    """Draw the target's token, follow the child that holds it, until there is none."""
    probs = torch.softmax(target / TEMPERATURE, -1)
    node = -1
    while True:
        token = int(torch.multinomial(probs[node + 1], 1))
        children = [i for i, parent in enumerate(parents) if parent == node and tokens[i] == token]
        if not children:
            return token
        node = children[0]


@pytest.mark.parametrize("num_nodes", [8, 64])
@pytest.mark.parametrize("vocab", [4096, 32000])
def test_verify_tree(measure, num_nodes, vocab):
    torch.manual_seed(0)
    target = 3 * torch.randn(1, num_nodes + 1, vocab)
    parents = torch.tensor([[(i - 1) // 2 if i > 1 else -1 for i in range(num_nodes)]]).int()
    rows = parents[0].long() + 1
    tokens = (
        target[0, rows].topk(2, -1).indices[torch.arange(num_nodes), torch.arange(num_nodes) % 2]
    )
    tokens = tokens.view(1, num_nodes).int()
    count, temperature = torch.tensor([num_nodes], dtype=torch.int32), torch.tensor([TEMPERATURE])
    seed, position = torch.tensor([1]), torch.tensor([10])
    token_list, parent_list = tokens[0].tolist(), parents[0].tolist()
    measure(
        {
            "specbranch": lambda: ops.verify_tree(
                target, None, tokens, parents, count, temperature, seed, position
            ),
            "torch": lambda: plain(target[0], token_list, parent_list),
        },
        num_bytes(target),
    )
