"""Shared by the losslessness tests: whole engines on table-driven models, counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from specbranch import Engine, SamplingParams
from specbranch.lanes import SerialLanes
from specbranch.testing.statistics import ChiSquare, chi_square
from specbranch.testing.table_model import TableModel

VOCAB, LENGTH, PROMPT = 4, 4, [0, 1]
RUNS = 2000
# Whatever comes next, a lookup of its last tokens finds something here.
PHRASES = (0, 0, 1, 1, 2, 2, 3, 3, 0, 2, 1, 3, 2, 0, 3, 1, 0, 1)


@dataclass(frozen=True)
class Case:
    """A policy in one of its modes.

    ``skip``: tokens before those that are counted; ``more``: tokens behind them, so that no round
    is cut short within them. ``runs``: seeds.
    """

    policy: str
    verify: str = "rejection"
    draft_stage: str = "overlap"
    k_max: int = 3
    epsilon: float = 0.45
    prompt: tuple[int, ...] = tuple(PROMPT)
    skip: int = 0
    more: int = 2
    runs: int = RUNS

    def __str__(self) -> str:
        return f"{self.policy}-{self.verify}-{self.draft_stage}-k{self.k_max}-e{self.epsilon}"


CASES = [
    Case("ar"),
    Case("ar", "coupled"),
    Case("sps"),
    Case("sps", "coupled"),
    *[
        Case("specbranch", verify, stage)
        for verify in ("rejection", "coupled")
        for stage in ("overlap", "serial")
    ],
    Case("specbranch", k_max=1, epsilon=0.0),
]
# In coupled mode, and where nothing is drafted at random, more is known: the sequence is that of
# "ar" (test_baselines.py), so fewer runs will do.
CASES += [
    Case("adaedl", epsilon=0.6, runs=1500),
    Case("adaedl", "coupled", epsilon=0.6, runs=1000),
    Case("pearl", runs=1500),
    Case("pearl", "coupled", runs=1000),
    Case("fanout", runs=1500),
    Case("fanout", "coupled", runs=1000),
    Case("fanout", draft_stage="serial", runs=1500),
    Case("fanout", "coupled", "serial", runs=1000),
    Case("ngram", prompt=PHRASES, runs=1000),
    Case("ngram", "coupled", prompt=PHRASES, runs=1000),
    Case("lookahead", prompt=PHRASES, skip=1, more=8, runs=1500),
    Case("lookahead", "coupled", prompt=PHRASES, skip=1, more=8, runs=1000),
]


def pair() -> tuple[TableModel, TableModel]:
    """A target and a draft that agree often enough to accept and often enough not to."""
    target = TableModel.random(VOCAB, seed=3, scale=1.3)
    other = TableModel.random(VOCAB, seed=4, scale=1.3)
    return target, TableModel(0.45 * target.table + 0.75 * other.table)


def engine_of(case: Case, target: TableModel, draft: TableModel) -> Engine:
    return Engine(
        target,
        draft,
        policy=case.policy,
        gamma=3,
        k_max=case.k_max,
        epsilon=case.epsilon,
        draft_stage=case.draft_stage,
        verify=case.verify,
        lanes=SerialLanes(1),
    )


def count(engine: Engine, case: Case, *, length: int = LENGTH, **params: float) -> np.ndarray:
    """How often each continuation came out over the case's seeds."""
    counts = np.zeros(VOCAB**length)
    last = case.skip + length
    for seed in range(case.runs):
        wanted = SamplingParams(max_new_tokens=last + case.more, seed=seed, **params)
        tokens = engine.generate(case.prompt, wanted).tokens[case.skip : last]
        counts[int(sum(t * VOCAB ** (length - 1 - i) for i, t in enumerate(tokens)))] += 1
    return counts


def judge(case: Case) -> ChiSquare:
    """Chi-square of a case at temperature 1 against the exact distribution."""
    target, draft = pair()
    counts = count(engine_of(case, target, draft), case, temperature=1.0)
    exact = target.sequence_distribution(case.prompt, case.skip + LENGTH)
    return chi_square(counts, exact.reshape(-1, len(counts)).sum(0))


def cut_probabilities(
    target: TableModel, *, temperature: float, top_k: int, top_p: float, min_p: float
) -> np.ndarray:
    """The transformed distribution by sorting, in float64: independent of ``ops.logit_cutoff``."""
    table = torch.softmax(target.table.double() / temperature, -1).numpy().reshape(-1, VOCAB)
    out = np.zeros_like(table)
    for row, probs in enumerate(table):
        order = np.argsort(-probs)
        kept = order[: top_k or VOCAB]
        mass = np.cumsum(probs[kept]) / probs[kept].sum()
        kept = kept[: int(np.searchsorted(mass, top_p)) + 1]
        kept = kept[probs[kept] >= min_p * probs.max()]
        out[row, kept] = probs[kept] / probs[kept].sum()
    return out.reshape(VOCAB, VOCAB, VOCAB)
