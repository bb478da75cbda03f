"""Whole-engine output against the exact sequence distribution of table-driven models.

256 continuations of 4 tokens, 2,000 seeds a case unless it says otherwise. Power: each of the
known mistakes, put in on purpose, must fail the very same test (below), and does by many orders of
magnitude. The least visible is a cut at the drawn token's probability where the draft goes on
meanwhile: p is about 1e-27, and 5e-13 with 1,500 seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from engine.lossless import (
    CASES,
    PHRASES,
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
from specbranch.session import Branches, Chain, Guesses, Session, Verdict
from specbranch.testing.statistics import chi_square
from specbranch.testing.table_model import TableModel

LEVEL = 1e-4  # a correct case fails once in 10,000 choices of the seeds, which are fixed
POWER = 1e-8  # a mistake must fail at this level at least


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_has_the_target_distribution(case: Case) -> None:
    result = judge(case)
    assert result.p_value > LEVEL, result


@pytest.mark.parametrize(
    "case",
    [
        Case("ar"),
        Case("sps"),
        Case("specbranch"),
        Case("specbranch", "coupled", "serial"),
        Case("pearl", runs=1500),
        Case("fanout", runs=1500),
        Case("ngram", prompt=PHRASES, runs=1500),
    ],
    ids=str,
)
def test_cutoffs_keep_the_transformed_distribution(case: Case) -> None:
    cut = {"temperature": 0.8, "top_k": 3, "top_p": 0.9, "min_p": 0.1}
    target, draft = pair()
    counts = count(engine_of(case, target, draft), case, length=3, **cut)
    exact = target.sequence_distribution(case.prompt, 3, cut_probabilities(target, **cut))
    result = chi_square(counts, exact)
    assert result.p_value > LEVEL, result


@pytest.mark.parametrize("draft_seed", [None, 9])
def test_identical_and_unrelated_drafts(draft_seed: int | None) -> None:
    """A draft equal to the target accepts everything; one that knows nothing is still lossless."""
    target, _ = pair()
    draft = target if draft_seed is None else TableModel.random(VOCAB, draft_seed, scale=3.0)
    case = Case("specbranch", draft_stage="serial")
    engine = engine_of(case, target, draft)
    if draft_seed is None:
        params = SamplingParams(max_new_tokens=200, temperature=1.0)
        stats = engine.generate(PROMPT, params).stats
        assert stats.rejections == 0 and stats.accepted_chain > 0
    counts = count(engine, case, length=3, temperature=1.0)
    result = chi_square(counts, target.sequence_distribution(PROMPT, 3))
    assert result.p_value > LEVEL, result


# ---------------------------------------------------------------- the same tests, with the mistakes


def _probabilities(logits: torch.Tensor) -> np.ndarray:
    weights = np.exp(logits.double().numpy())
    return weights / weights.sum(-1, keepdims=True)


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


Recover = Callable[[torch.Tensor, Chain, int], int]


def replace_recovered(monkeypatch: pytest.MonkeyPatch, recover: Recover) -> None:
    """After a rejection, commit ``recover(target_logits, chain, num_accepted)``."""
    right = Session.verify

    def wrong(
        self: Session, logits: torch.Tensor, chain: Chain, branches: Branches | None = None
    ) -> Verdict:
        verdict = right(self, logits, chain, branches)
        at = verdict.num_accepted
        return verdict if at == len(chain) else Verdict(at, recover(logits, chain, at), -1)

    monkeypatch.setattr(Session, "verify", wrong)


def argmax_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the residual's argmax where it must be sampled."""

    def recover(logits: torch.Tensor, chain: Chain, at: int) -> int:
        residual = _probabilities(logits[at]) - _probabilities(chain.logits[at])
        return int(residual.argmax())

    replace_recovered(monkeypatch, recover)


def guesses_as_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge tokens that were looked up as if a (uniform) distribution had drawn them."""
    right = Session.guess

    def wrong(self: Session, tokens: Sequence[int]) -> Chain:
        chain = right(self, tokens)
        chain.logits = torch.zeros(len(chain), VOCAB)
        return chain

    monkeypatch.setattr(Session, "guess", wrong)


def each_guess_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try the guesses for a position one after the other, each with its full probability."""

    def wrong(self: Session, logits: torch.Tensor, guesses: Guesses) -> tuple[list[int], int]:
        rng = np.random.default_rng([self.params.seed, self.length])
        path: list[int] = []
        row = _probabilities(logits)
        for node, (token, parent) in enumerate(zip(guesses.tokens, guesses.parents, strict=True)):
            at = path[-1] if path else -1
            if parent == at and rng.random() < row[at + 1, token]:
                path.append(node)
        last = row[path[-1] + 1 if path else 0]
        return path, int(rng.choice(VOCAB, p=last / last.sum()))

    monkeypatch.setattr(Session, "match", wrong)


def surprise_for_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop where the token that was drawn is a surprise, in place of the row's entropy."""
    monkeypatch.setattr(drafting, "entropy_of", lambda drawn: -drawn.probability.log())


def first_token_ahead_unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a whole chain, commit the first token drafted meanwhile without judging it."""
    right = Session.verify_ahead

    def wrong(self: Session, logits: torch.Tensor, chain: Chain) -> Verdict:
        verdict = right(self, logits, chain)
        if verdict.num_accepted < len(chain) - 1:
            return verdict
        return Verdict(len(chain), -1)

    monkeypatch.setattr(Session, "verify_ahead", wrong)


def hedge_for_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a rejection, commit the hedge (the draft's next best token), whatever was drawn."""

    def recover(logits: torch.Tensor, chain: Chain, at: int) -> int:
        others = chain.logits[at].clone()
        others[chain.tokens[at]] = -torch.inf
        return int(others.argmax())

    replace_recovered(monkeypatch, recover)


MISTAKES = [
    (sampled_tokens_probability, Case("specbranch", draft_stage="serial")),
    (sampled_tokens_probability, Case("specbranch", draft_stage="overlap")),
    (argmax_drafting, Case("sps")),
    (argmax_drafting, Case("specbranch", draft_stage="serial")),
    (largest_branch, Case("specbranch", draft_stage="overlap")),
    (argmax_residual, Case("sps")),
    (argmax_residual, Case("specbranch", draft_stage="serial")),
    (guesses_as_samples, Case("ngram", prompt=PHRASES, runs=1000)),
    (each_guess_on_its_own, Case("lookahead", prompt=PHRASES, skip=1, more=8, runs=1500)),
    (surprise_for_entropy, Case("adaedl", epsilon=0.6, runs=1500)),
    (first_token_ahead_unjudged, Case("pearl", runs=1500)),
    (hedge_for_recovered, Case("fanout", runs=1500)),
]


@pytest.mark.parametrize(("mistake", "case"), MISTAKES)
def test_the_test_catches(mistake: object, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)  # type: ignore[operator]
    result = judge(case)
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
