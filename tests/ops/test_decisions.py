"""The decisions of the kernels are the CPU's: 100,000 rows of logits through the ops that draw.

A float that differs in its last bit changes a decision about once in a million draws, so equal
decisions alone would say little; probabilities and entropies are compared to the bit as well.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops.row_cases import f32, i32, i64, logits_of, make_rng, run_on, same_bits
from ops.verify_cases import random_chain, random_tree

from specbranch import ops

kernels = pytest.mark.parametrize(
    "backend", ["simt", pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True
)
DRAWS = ["inverse_cdf", "gumbel"]


@kernels
@pytest.mark.parametrize("draw", DRAWS)
def test_sample(backend: str, draw: str) -> None:
    """30,000 rows in all."""
    rng, _ = make_rng()
    B, V = 15_000, int(rng.integers(33, 200))
    logits = f32(logits_of("plain", rng, B, V))
    given = dict(
        temperature=f32(rng.choice([0, 0.5, 1, 1.7], B)),
        seed=i64(rng.integers(2**62, size=B)),
        position=i64(rng.integers(0, 2**40, B)),
    )
    wanted = ops.sample(logits, **given, draw=draw)
    assert same_bits(run_on(backend, ops.sample, logits, **given, draw=draw), wanted)


@kernels
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("distance", ["near", "far"])
def test_verify(backend: str, distance: str, draw: str) -> None:
    """56,000 rows in all."""
    rng, _ = make_rng()
    case = random_chain(rng, 2000, 3, int(rng.integers(33, 200)), 3, "plain", distance)
    # Some rows accept everything and find a branch, whatever the logits are.
    case["draft_logits"][::4] = case["target_logits"][::4, :3]
    last = case["target_logits"][torch.arange(2000), case["chain_length"].long()]
    case["branch_tokens"][::2, 0] = i32(last[::2].argmax(-1))
    temperature, seed, position = (case[x] for x in ("temperature", "seed", "position"))
    for i in range(3):
        drawn = ops.sample(
            f32(case["draft_logits"][:, i]), temperature, seed, position + i, draw=draw
        )
        case["draft_tokens"][:, i] = drawn.token
    wanted = ops.verify(**case, draw=draw)
    counts = np.bincount(np.asarray(wanted.num_accepted), minlength=4)
    assert (counts > 50).all() and int((torch.as_tensor(wanted.survivor) >= 0).sum()) > 50
    assert same_bits(run_on(backend, ops.verify, **case, draw=draw), wanted)


@kernels
@pytest.mark.parametrize("draw", DRAWS)
def test_verify_tree(backend: str, draw: str) -> None:
    """14,000 rows in all."""
    rng, _ = make_rng()
    case = random_tree(rng, 500, 6, int(rng.integers(33, 200)), "plain", "near")
    wanted = ops.verify_tree(**case, draw=draw)
    assert len(np.unique(np.asarray(wanted.num_accepted))) > 1
    assert same_bits(run_on(backend, ops.verify_tree, **case, draw=draw), wanted)
