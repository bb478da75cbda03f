"""Random requests for verify and verify_tree, and the exact distributions of their statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ops.row_cases import f32, i32, i64, logits_of

#: Target and draft distributions for statistical tests, small enough for 100,000 draws to see.
PAIRS: dict[str, tuple[list[float], list[float]]] = {
    "far": ([0.5, 0.2, 0.15, 0.1, 0.05], [0.05, 0.1, 0.15, 0.2, 0.5]),
    "near": ([0.3, 0.25, 0.2, 0.15, 0.1], [0.28, 0.27, 0.18, 0.17, 0.1]),
    "equal": ([0.3, 0.25, 0.2, 0.15, 0.1], [0.3, 0.25, 0.2, 0.15, 0.1]),
    "holes": ([0.4, 0.0, 0.3, 0.0, 0.2, 0.1], [0.0, 0.5, 0.3, 0.1, 0.1, 0.0]),
    "disjoint": ([0.5, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.4, 0.3, 0.3]),
    "flat draft": ([0.9, 0.02, 0.02, 0.02, 0.02, 0.01, 0.005, 0.005], [0.125] * 8),
}
COUNT = 100_000
#: A right rule fails one run in a million; every wrong rule below is caught with room to spare.
LEVEL = 1e-6


def log(probabilities: Any) -> torch.Tensor:
    """Logits of a distribution."""
    with np.errstate(divide="ignore"):
        return f32(np.log(np.asarray(probabilities, np.float64)))


def softmax(logits: torch.Tensor) -> np.ndarray:
    """The distribution that float32 logits really are."""
    weights = np.exp(logits.numpy().astype(np.float64))
    return weights / weights.sum()


def fresh_seeds(rng: np.random.Generator, count: int = COUNT) -> torch.Tensor:
    """Consecutive seeds from a random start."""
    start = int(rng.integers(2**61))
    return torch.arange(start, start + count)


def draft_near(target: np.ndarray, rng: np.random.Generator, distance: str) -> np.ndarray:
    """Draft logits for target logits."""
    if distance == "same":
        return target.copy()
    noise = rng.standard_normal(target.shape).astype(np.float32)
    return target + noise if distance == "near" else noise * np.float32(3)


def draw_tokens(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One token a row, from its softmax nine times in ten, else any: even impossible ones."""
    shape, V = logits.shape[:-1], logits.shape[-1]
    gumbel = rng.gumbel(size=logits.shape)
    likely = np.argmax(np.where(np.isfinite(logits), logits + gumbel, -np.inf), axis=-1)
    return np.where(rng.random(shape) < 0.9, likely, rng.integers(V, size=shape)).astype(np.int32)


def random_chain(
    rng: np.random.Generator, B: int, G: int, V: int, K: int, kind: str, distance: str
) -> dict[str, Any]:
    """Arguments of verify with random everything; NumPy logits, the rest tensors."""
    target = logits_of(kind, rng, B, G + 1, V)
    draft = draft_near(target[:, :G], rng, distance)
    return {
        "target_logits": target,
        "draft_logits": draft,
        "draft_tokens": i32(draw_tokens(draft, rng)),
        "chain_length": i32(np.where(rng.random(B) < 0.5, G, rng.integers(0, G + 1, B))),
        "branch_tokens": i32(rng.integers(0, V, (B, K))),
        "num_branches": i32(rng.integers(0, K + 1, B)),
        "temperature": f32(rng.choice([0.0, 0.5, 1.0, 1.0, 1.7], B)),
        "seed": i64(rng.integers(-(2**63), 2**63 - 1, B)),
        "position": i64(rng.integers(0, 2**40, B)),
    }


def random_tree(
    rng: np.random.Generator, B: int, N: int, V: int, kind: str, distance: str
) -> dict[str, Any]:
    """Arguments of verify_tree; siblings share the kind and, where sampled, the draft row."""
    target = logits_of(kind, rng, B, N + 1, V)
    draft = draft_near(target, rng, distance)
    parents = np.full((B, N), -1, np.int32)
    tokens, sampled = np.zeros((B, N), np.int32), np.zeros((B, N), np.uint8)
    for b in range(B):
        kinds = rng.random(N + 1) < 0.6
        for i in range(N):
            parents[b, i] = rng.integers(max(-1, i - 4), i)
            row = parents[b, i] + 1
            source = draft if kinds[row] else target
            tokens[b, i] = draw_tokens(source[b, row][None], rng)[0]
            sampled[b, i] = kinds[row]
    return {
        "target_logits": target,
        "draft_logits": draft,
        "tokens": i32(tokens),
        "parents": i32(parents),
        "num_nodes": i32(np.where(rng.random(B) < 0.7, N, rng.integers(0, N + 1, B))),
        "temperature": f32(rng.choice([0.0, 0.5, 1.0, 1.0, 1.7], B)),
        "seed": i64(rng.integers(-(2**63), 2**63 - 1, B)),
        "position": i64(rng.integers(0, 2**40, B)),
        "sampled": torch.from_numpy(sampled),
    }
