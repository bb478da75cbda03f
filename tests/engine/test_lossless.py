"""Whole-engine output against the exact sequence distribution of table-driven models.

256 continuations of 4 tokens, ``RUNS`` seeds a case. Power: each of the four known mistakes,
put in on purpose, must fail the very same test (below), and does by many orders of magnitude.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from engine.lossless import (
    CASES,
    PROMPT,
    VOCAB,
    Case,
    count,
    cut_probabilities,
    engine_of,
    judge,
    pair,
)

from specbranch import SamplingParams, drafting, ops
from specbranch.session import Branches, Chain, Session, Verdict
from specbranch.testing.statistics import chi_square
from specbranch.testing.table_model import TableModel

RUNS = 6000
LEVEL = 1e-4  # a correct case fails once in 10,000 choices of the seeds, which are fixed
POWER = 1e-8  # a mistake must fail at this level at least


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_has_the_target_distribution(case: Case) -> None:
    result = judge(case, RUNS)
    assert result.p_value > LEVEL, result


@pytest.mark.parametrize(
    "case",
    [Case("ar"), Case("sps"), Case("specbranch"), Case("specbranch", "coupled", "serial")],
    ids=str,
)
def test_cutoffs_keep_the_transformed_distribution(case: Case) -> None:
    cut = {"temperature": 0.8, "top_k": 3, "top_p": 0.9, "min_p": 0.1}
    target, draft = pair()
    counts = count(engine_of(case, target, draft), RUNS, length=3, **cut)
    exact = target.sequence_distribution(PROMPT, 3, cut_probabilities(target, **cut))
    result = chi_square(counts, exact)
    assert result.p_value > LEVEL, result


@pytest.mark.parametrize("draft_seed", [None, 9])
def test_identical_and_unrelated_drafts(draft_seed: int | None) -> None:
    """A draft equal to the target accepts everything; one that knows nothing is still lossless."""
    target, _ = pair()
    draft = target if draft_seed is None else TableModel.random(VOCAB, draft_seed, scale=3.0)
    engine = engine_of(Case("specbranch", draft_stage="serial"), target, draft)
    if draft_seed is None:
        params = SamplingParams(max_new_tokens=200, temperature=1.0)
        stats = engine.generate(PROMPT, params).stats
        assert stats.rejections == 0 and stats.accepted_chain > 0
    counts = count(engine, RUNS, length=3, temperature=1.0)
    result = chi_square(counts, target.sequence_distribution(PROMPT, 3))
    assert result.p_value > LEVEL, result


# ---------------------------------------------------------------- the same tests, with the mistakes


def _probabilities(logits: torch.Tensor) -> np.ndarray:
    return torch.softmax(logits.double(), -1).numpy()


def sampled_tokens_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut where q(x) < epsilon for the token x that was drawn (the paper's wording)."""
    monkeypatch.setattr(drafting, "confidence_of", lambda drawn: drawn.probability)


def argmax_drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draft by argmax, test as if the token had been sampled."""
    right = drafting.Sampler.draw_drafts

    def wrong(self: drafting.Sampler, logits: torch.Tensor, *args: Any) -> ops.SampleResult:
        return right(self, logits, *args)._replace(token=logits.argmax(-1).to(torch.int32))

    monkeypatch.setattr(drafting.Sampler, "draw_drafts", wrong)


def largest_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test only the branch with the largest target probability, against one uniform number."""
    right = Session.verify

    def wrong(
        self: Session, logits: torch.Tensor, chain: Chain, branches: Branches | None = None
    ) -> Verdict:
        verdict = right(self, logits, chain, branches)
        if verdict.num_accepted < len(chain) or branches is None:
            return verdict
        last = _probabilities(logits[-1])
        best = int(np.argmax(last[branches.candidates]))
        rng = np.random.default_rng([self.params.seed, self.length])
        token = branches.candidates[best]
        if rng.random() < last[token]:
            return Verdict(verdict.num_accepted, token, best)
        token = int(rng.choice(VOCAB, p=last))
        return Verdict(verdict.num_accepted, token, -1)

    monkeypatch.setattr(Session, "verify", wrong)


def argmax_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the residual's argmax where it must be sampled."""
    right = Session.verify

    def wrong(
        self: Session, logits: torch.Tensor, chain: Chain, branches: Branches | None = None
    ) -> Verdict:
        verdict = right(self, logits, chain, branches)
        at = verdict.num_accepted
        if at == len(chain):
            return verdict
        residual = _probabilities(logits[at]) - _probabilities(chain.logits[at])
        return Verdict(at, int(residual.argmax()), -1)

    monkeypatch.setattr(Session, "verify", wrong)


MISTAKES = [
    (sampled_tokens_probability, Case("specbranch", draft_stage="serial")),
    (sampled_tokens_probability, Case("specbranch", draft_stage="overlap")),
    (argmax_drafting, Case("sps")),
    (argmax_drafting, Case("specbranch", draft_stage="serial")),
    (largest_branch, Case("specbranch", draft_stage="overlap")),
    (argmax_residual, Case("sps")),
    (argmax_residual, Case("specbranch", draft_stage="serial")),
]


@pytest.mark.parametrize(("mistake", "case"), MISTAKES)
def test_the_test_catches(mistake: object, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)  # type: ignore[operator]
    result = judge(case, RUNS)
    assert result.p_value < POWER, result


# ---------------------------------------------------------------- coupled: the same sequence


@pytest.mark.parametrize("gamma", [1, 3, 5])
@pytest.mark.parametrize("k_max", [1, 4])
@pytest.mark.parametrize("draft_stage", ["serial", "overlap"])
@pytest.mark.parametrize("policy", ["sps", "specbranch"])
def test_coupled_gives_the_sequence_of_ar(
    policy: str, draft_stage: str, k_max: int, gamma: int
) -> None:
    from specbranch import Engine

    target = TableModel.random(11, seed=5, scale=1.5)
    draft = TableModel(target.table + TableModel.random(11, seed=6).table)
    plain = Engine(target, policy="ar", verify="coupled")
    engine = Engine(
        target,
        draft,
        policy=policy,
        gamma=gamma,
        k_max=k_max,
        draft_stage=draft_stage,
        verify="coupled",
    )
    for seed in range(10):
        for cut in ({}, {"top_p": 0.9, "top_k": 7}):
            params = SamplingParams(max_new_tokens=60, temperature=1.0, seed=seed, **cut)
            wanted = plain.generate(PROMPT, params).tokens
            assert engine.generate(PROMPT, params).tokens == wanted
