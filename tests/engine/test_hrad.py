"""H-RAD in the round: its place, and an output that stays the target's own whatever it says."""

from __future__ import annotations

import functools
from itertools import product

import pytest
import torch
from engine.featured import FeaturedTable
from engine.lossless import LENGTH, PROMPT, VOCAB, Case, count, pair

from specbranch import Engine, SamplingParams, demo_pair, demo_predictor
from specbranch.lanes import SerialLanes
from specbranch.policies import SpecBranch
from specbranch.predictor import Keep, Predictor
from specbranch.prompts import humaneval
from specbranch.session import Branches, Chain, Session, Verdict
from specbranch.testing.statistics import ChiSquare, chi_square
from specbranch.testing.table_model import TableModel

LEVEL, POWER = 1e-4, 1e-8  # as in test_lossless.py
# A predictor that peeks is hard to see: p is about 1e-10 with 2,000 seeds, 4e-11 with these.
PEEKING = Case("specbranch", runs=3000)


class FromContext:
    """Decides from the committed context alone, in one of several nasty ways."""

    hidden_layers = 1

    def __init__(self, rule: str) -> None:
        target, draft = pair()
        self._likely = [model.table.argmax(-1) for model in (target, draft)]
        self._rule = getattr(self, rule)

    def predict(self, hidden: torch.Tensor, next_token: int) -> Keep:
        """``hidden`` tells the token at the newest verified position."""
        return Keep(int(self._rule(int(hidden[0, 1]), next_token)))

    def scattered(self, last: int, token: int) -> int:
        """Every class, with no sense in it."""
        return (5 * last + 3 * token) % 3

    def against(self, last: int, token: int) -> int:
        """All where the draft is wrong, nothing where it is right."""
        target, draft = (int(table[last, token]) for table in self._likely)
        return Keep.NOTHING if target == draft else Keep.ALL

    def along(self, last: int, token: int) -> int:
        """All where the draft is right, nothing where it is wrong."""
        return Keep.ALL - self.against(last, token)


def engine_of(predictor: Predictor, case: Case) -> Engine:
    target, draft = pair()
    return Engine(
        FeaturedTable(target.table), draft, gamma=3, k_max=case.k_max, epsilon=case.epsilon,
        draft_stage=case.draft_stage, verify=case.verify, predictor=predictor,
        lanes=SerialLanes(1),
    )  # fmt: skip


def judge(predictor: Predictor, case: Case) -> ChiSquare:
    counts = count(engine_of(predictor, case), case, temperature=1.0)
    return chi_square(counts, pair()[0].sequence_distribution(PROMPT, LENGTH))


@pytest.mark.parametrize(
    ("rule", "case"),
    [
        ("scattered", PEEKING),
        ("scattered", Case("specbranch", draft_stage="serial")),
        ("scattered", Case("specbranch", verify="coupled")),
        ("against", PEEKING),
        ("along", Case("specbranch", k_max=1)),
    ],
    ids=str,
)
def test_output_has_the_target_distribution(rule: str, case: Case) -> None:
    result = judge(FromContext(rule), case)
    assert result.p_value > LEVEL, result


class Peeking:
    """Looks at the token that was drawn behind the surviving branch: what must not be done."""

    hidden_layers = 1

    def __init__(self, *, own_probability: bool) -> None:
        self._own_probability = own_probability
        self.branches: Branches | None = None
        self.survivor = -1

    def predict(self, hidden: torch.Tensor, next_token: int) -> Keep:
        """All where the first drafted token is likely, else nothing."""
        assert self.branches is not None
        if not self.branches.steps:
            return Keep.ALL
        drafted = torch.softmax(self.branches.logits[0, self.survivor], -1)
        drawn = int(self.branches.tokens[0, self.survivor])
        known = drafted[drawn] if self._own_probability else drafted.max()
        return Keep.ALL if known >= 0.45 else Keep.NOTHING


@pytest.fixture
def peeking_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy shows its predictor what was drafted."""
    right = SpecBranch._next_chain

    def showing(
        self: SpecBranch, session: Session, branches: Branches, verdict: Verdict, verified: int
    ) -> Chain | None:
        self.predictor.branches, self.predictor.survivor = branches, verdict.survivor
        return right(self, session, branches, verdict, verified)

    monkeypatch.setattr(SpecBranch, "_next_chain", showing)


def test_the_test_catches_a_predictor_that_peeks(peeking_allowed: None) -> None:
    result = judge(Peeking(own_probability=True), PEEKING)
    assert result.p_value < POWER, result


def test_the_largest_probability_is_no_peeking(peeking_allowed: None) -> None:
    """The same predictor, but for what it looks at."""
    result = judge(Peeking(own_probability=False), PEEKING)
    assert result.p_value > LEVEL, result


# ------------------------------------------------------------------------------------- its place
class Recorder:
    """Notes what it was asked."""

    hidden_layers = 2

    def __init__(self) -> None:
        self.asked: list[tuple[torch.Tensor, int]] = []

    def predict(self, hidden: torch.Tensor, next_token: int) -> Keep:
        """All."""
        self.asked.append((hidden.clone(), next_token))
        return Keep.ALL


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("draft_stage", ["overlap", "serial"])
def test_features_are_of_the_newest_verified_position(draft_stage: str, temperature: float) -> None:
    """The hidden states belong to the token right before the one that was committed last."""
    recorder, seen = Recorder(), 0
    engine = engine_of(recorder, Case("specbranch", draft_stage=draft_stage))
    for seed, prompt in enumerate(product(range(VOCAB), repeat=2)):
        params = SamplingParams(max_new_tokens=40, temperature=temperature, seed=seed)
        tokens = [*prompt, *engine.generate(prompt, params).tokens]
        for hidden, token in recorder.asked:
            position = int(hidden[0, 2])
            if position + 1 < len(tokens):  # a last round may go beyond the end
                assert hidden.shape == (2, 3)
                around = [*hidden[1, :2].int().tolist(), token]
                assert tokens[position - 1 : position + 2] == around
                seen += 1
        recorder.asked.clear()
    assert seen > 5


def test_a_target_without_hidden_states_is_refused() -> None:
    target, draft = pair()
    with pytest.raises(ValueError, match=r"target gave no hidden states; .* last 2 layers"):
        Engine(target, draft, predictor=Recorder()).generate(PROMPT)


# ---------------------------------------------------------------------------------- the demo pair
@functools.cache
def _demo() -> tuple:
    target, draft, tokenizer = demo_pair()
    return target, draft, [tokenizer.encode(prompt) for prompt in humaneval(20)]


@pytest.mark.parametrize("draft_stage", ["overlap", "serial"])
@pytest.mark.parametrize("verify", ["rejection", "coupled"])
def test_greedy_equals_ar_with_the_shipped_predictor(verify: str, draft_stage: str) -> None:
    target, draft, prompts = _demo()
    params = SamplingParams(max_new_tokens=32)
    plain = Engine(target, policy="ar", verify=verify)
    engine = Engine(
        target, draft, gamma=4, epsilon=0.5, verify=verify, draft_stage=draft_stage,
        predictor=demo_predictor(target),
    )  # fmt: skip
    for prompt in prompts:
        wanted = plain.generate(prompt, params).tokens
        assert engine.generate(prompt, params).tokens == wanted


def test_the_shipped_predictor_says_all_three() -> None:
    """And is not asked for nothing: what it says changes the counts."""
    target, draft, prompts = _demo()
    predictor, said = demo_predictor(target), set()
    right = predictor.predict

    def noting(hidden: torch.Tensor, next_token: int) -> Keep:
        said.add(right(hidden, next_token))
        return right(hidden, next_token)

    predictor.predict = noting  # type: ignore[method-assign]
    params = SamplingParams(max_new_tokens=64)
    kwargs = {"gamma": 4, "epsilon": 0.5}
    with_it = Engine(target, draft, predictor=predictor, **kwargs)
    without = Engine(target, draft, **kwargs)
    rounds = [sum(e.generate(p, params).stats.rounds for p in prompts) for e in (with_it, without)]
    assert said == set(Keep)
    assert rounds[0] != rounds[1]


def test_the_engine_refuses_a_predictor_of_another_target() -> None:
    target, draft, _ = _demo()
    predictor = demo_predictor(target)
    table = TableModel.random(12, seed=0)
    with pytest.raises(ValueError, match="TableModel without an embedding"):
        Engine(table, table, predictor=predictor)
    with pytest.raises(ValueError, match=r"width 256 .* this target has width 128"):
        Engine(draft, draft, predictor=predictor)
