"""Drafts with another vocabulary size than the target's: same output, and no token beyond it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine.lossless import PROMPT, VOCAB, Case, count, engine_of, pair
from models.checkpoints import save
from tiny_checkpoint import byte_tokenizer
from tokenizers import AddedToken

from specbranch import Engine, SamplingParams, Tokenizer, load_model
from specbranch.drafting import DraftBuffers, Sampler, draft_steps
from specbranch.models import match_vocabulary
from specbranch.testing.statistics import chi_square
from specbranch.testing.table_model import TableModel
from specbranch.tokenizer import check_same_tokenizer

LEVEL = 1e-4  # a correct case fails once in 10,000 choices of the seeds, which are fixed
POWER = 1e-8  # a mistake must fail at this level at least
SIZES = {"smaller": VOCAB - 1, "larger": VOCAB + 3}
CASES = [
    Case("sps", runs=800),
    Case("specbranch", runs=800),
    Case("specbranch", "coupled", runs=300),
]


def resized(draft: TableModel, size: int) -> TableModel:
    """The draft with ``size`` tokens; what it has more than before is likely."""
    table = torch.full((size, size, size), 1.5)
    kept = slice(min(size, VOCAB))
    table[kept, kept, kept] = draft.table[kept, kept, kept]
    return TableModel(table)


def p_value(case: Case, size: int) -> float:
    """Of the output with a padded draft against the target's exact distribution."""
    target, draft = pair()
    padded = match_vocabulary(resized(draft, size), VOCAB)
    counts = count(engine_of(case, target, padded), case, length=3, temperature=1.0)
    return chi_square(counts, target.sequence_distribution(PROMPT, 3)).p_value


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_output_keeps_the_target_distribution(case: Case, size: int) -> None:
    assert p_value(case, size) > LEVEL


def test_a_draft_that_is_not_the_one_it_drew_from_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn from one row, verified with another (without the padding): no longer lossless."""
    take = DraftBuffers.fetch

    def fetch(self: DraftBuffers) -> None:
        self.logits[..., VOCAB - 1 :] = 0.0
        take(self)

    monkeypatch.setattr(DraftBuffers, "fetch", fetch)
    assert p_value(Case("sps", runs=800), SIZES["smaller"]) < POWER


@pytest.mark.parametrize("draw", ["inverse_cdf", "gumbel"])
@pytest.mark.parametrize("params", [{}, {"top_k": 9}, {"top_p": 0.999}, {"min_p": 0.01}], ids=str)
def test_no_token_beyond_either_vocabulary_is_drafted(draw: str, params: dict) -> None:
    draft = match_vocabulary(TableModel(torch.zeros(5, 5, 5)), 7)
    state = draft.new_state(64, 40)
    state.prefill(torch.tensor([0, 6]))  # 6 is padding that only the target has
    sampler = Sampler(SamplingParams(64, 1.0, seed=3, **params), draw, 8)
    buffers = DraftBuffers(8, 4, 7, torch.float32)
    assert draft_steps(state, [6, 1, 2, 5], 4, 8, sampler, 2, 0.0, buffers) == 8
    assert set(buffers.tokens.flatten().tolist()) == {0, 1, 2, 3, 4}
    assert (buffers.logits[..., 5:] == float("-inf")).all()


def test_rows_of_a_larger_draft_are_cut() -> None:
    whole = TableModel.random(9, 0)
    state = match_vocabulary(whole, 6).new_state(8, 8)
    state.prefill(torch.tensor([1, 2]))
    rows = state.forward(torch.tensor([3, 4]), [-1, 0]).logits
    assert rows.is_contiguous()
    assert torch.equal(rows, torch.stack([whole.table[2, 3, :6], whole.table[3, 4, :6]]))
    assert (state.length, state.num_nodes) == (2, 2)
    state.commit([0])
    assert (state.length, state.num_nodes) == (3, 0)


def test_same_size_changes_nothing() -> None:
    draft = TableModel.random(4, 0)
    assert match_vocabulary(draft, 4) is draft


@pytest.mark.parametrize(
    ("size", "error"), [(0, ValueError), (-3, ValueError), (True, TypeError), (4.0, TypeError)]
)
def test_bad_sizes(size: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"target_vocab_size was"):
        match_vocabulary(TableModel.random(4, 0), size)  # type: ignore[arg-type]


def test_a_real_pair_of_two_sizes(tmp_path: Path) -> None:
    target = load_model(save(tmp_path / "target"))
    draft = load_model(save(tmp_path / "draft", vocab_size=160, num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"160 tokens.*128.*match_vocabulary"):
        Engine(target, draft)
    fitted = match_vocabulary(draft, target.vocab_size)
    params = SamplingParams(24)
    expected = Engine(target, policy="ar").generate([3, 4, 5], params).tokens
    for policy in ("sps", "specbranch"):
        assert Engine(target, fitted, policy=policy).generate([3, 4, 5], params).tokens == expected


# ---------------------------------------------------------------------------- tokenizers
def tokenizer(*more: str, swapped: bool = False) -> Tokenizer:
    backend = byte_tokenizer()
    if swapped:
        vocab = backend.get_vocab()
        a, b = (token for token, idx in vocab.items() if idx in (7, 8))
        vocab[a], vocab[b] = vocab[b], vocab[a]
        backend.model = type(backend.model)(vocab=vocab, merges=[])
    backend.add_special_tokens([AddedToken(token, special=True) for token in more])
    return Tokenizer(backend)


def test_tokenizers_that_share_their_ids_are_the_same() -> None:
    check_same_tokenizer(tokenizer(), tokenizer())
    check_same_tokenizer(tokenizer(), tokenizer("<a>", "<b>"))
    check_same_tokenizer(tokenizer("<a>", "<b>"), tokenizer("<a>"))


@pytest.mark.parametrize(
    ("draft", "idx"), [({"swapped": True}, 7), ({"more": ("<b>", "<a>")}, 256)], ids=str
)
def test_the_first_token_that_differs_is_named(draft: dict, idx: int) -> None:
    other = tokenizer(*draft.pop("more", ()), **draft)
    target = tokenizer("<a>", "<b>")
    with pytest.raises(ValueError) as caught:
        check_same_tokenizer(target, other)
    named = [each.backend.id_to_token(idx) for each in (other, target)]
    assert f"token {idx} is {named[0]!r}; it must be the target's {named[1]!r}" in str(caught.value)
