"""The policies beside SpecBranch: what makes each of them itself, and the tokens of ``ar``."""

from __future__ import annotations

import random

import pytest
import torch

from specbranch import Engine, SamplingParams
from specbranch.lanes import SerialLanes
from specbranch.policies.adaedl import AdaEdl
from specbranch.policies.fanout import FanOut, spread
from specbranch.policies.lookahead import Lookahead, Pool, tree_of
from specbranch.policies.ngram import PromptLookup
from specbranch.policies.pearl import Pearl
from specbranch.session import Chain, Guesses, Session, Settings
from specbranch.stats import Stats
from specbranch.testing.table_model import TableModel

VOCAB, PROMPT = 11, [3, 4, 5]
BASELINES = ["adaedl", "pearl", "lookahead", "ngram", "fanout"]
ALONE = ["lookahead", "ngram"]  # no draft, and no random number in their guesses


def models(scale: float = 0.7) -> tuple[TableModel, TableModel]:
    target = TableModel.random(VOCAB, seed=5, scale=1.5)
    return target, TableModel(target.table + TableModel.random(VOCAB, seed=6, scale=scale).table)


def counting(shift: int = 1) -> TableModel:
    """A model all but certain that the next token is the last one and ``shift``."""
    table = torch.zeros(VOCAB, VOCAB, VOCAB)
    last = torch.arange(VOCAB)
    table[:, last, (last + shift) % VOCAB] = 30.0
    return TableModel(table)


def engine(policy: str, target: TableModel, draft: TableModel | None, **settings) -> Engine:
    return Engine(target, draft, policy=policy, lanes=SerialLanes(1), **settings)


def open_session(target: TableModel, draft: TableModel | None, **settings) -> Session:
    chosen = Settings(**settings)
    params = SamplingParams(max_new_tokens=100, temperature=1.0)
    nodes = Lookahead.target_nodes(chosen)
    session = Session(target, draft, PROMPT, params, chosen, SerialLanes(1), target_nodes=nodes)
    session.prefill()
    return session


# ---------------------------------------------------------------- the tokens of ar


@pytest.mark.parametrize("gamma", [1, 3, 6])
@pytest.mark.parametrize("policy", BASELINES)
def test_greedy_and_coupled_give_the_sequence_of_ar(policy: str, gamma: int) -> None:
    target, draft = models()
    ways = [("rejection", 0.0, {}), ("coupled", 0.0, {})]
    ways += [("coupled", 1.0, {}), ("coupled", 0.9, {"top_p": 0.9, "top_k": 7})]
    for verify, temperature, cut in ways:
        plain = engine("ar", target, None, verify=verify)
        tried = engine(policy, target, draft, gamma=gamma, epsilon=0.5, verify=verify)
        for seed in range(6):
            params = SamplingParams(max_new_tokens=60, temperature=temperature, seed=seed, **cut)
            wanted = plain.generate(PROMPT, params).tokens
            assert tried.generate(PROMPT, params).tokens == wanted


@pytest.mark.parametrize("cut", [{}, {"top_k": 6, "min_p": 0.05}], ids=str)
@pytest.mark.parametrize("policy", ALONE)
def test_guesses_change_no_draw(policy: str, cut: dict) -> None:
    """Matched against the target's own draws, they give its sequence in rejection mode too."""
    target, _ = models()
    tried = engine(policy, target, None)
    for seed in range(10):
        params = SamplingParams(max_new_tokens=80, temperature=1.0, seed=seed, **cut)
        wanted = engine("ar", target, None).generate(PROMPT, params).tokens
        assert tried.generate(PROMPT, params).tokens == wanted


@pytest.mark.parametrize("policy", [name for name in BASELINES if name != "fanout"])
def test_every_drafted_token_is_accounted_for(policy: str) -> None:
    target, draft = models()
    tried = engine(policy, target, draft, epsilon=0.4)
    params = SamplingParams(max_new_tokens=400, temperature=1.0)
    result = tried.generate(PROMPT, params)
    stats = result.stats
    assert 0 <= stats.drafted - stats.accepted - stats.rolled_back < tried.settings.gamma
    assert stats.pruned == stats.branch_points == stats.branch_hits == 0
    assert stats.target_forwards == stats.rounds
    own = sum(origin in ("recovered", "bonus") for origin in result.origins)
    chain = result.origins.count("chain")
    assert own + chain == 400 and stats.committed >= 400
    # The last round may commit more than is asked for.
    assert chain <= stats.accepted == stats.accepted_chain <= chain + tried.settings.gamma
    assert own <= stats.rounds and 0 < stats.rollback_rate < 1
    assert (stats.draft_forwards == 0) == (policy in ALONE)
    assert (stats.sibling_tokens > 0) == (policy == "lookahead")


@pytest.mark.parametrize("policy", ALONE)
def test_no_draft_is_needed_and_none_is_called(policy: str) -> None:
    target, _ = models()
    tried = engine(policy, target, TableModel.random(3, seed=1))
    assert tried.draft is None
    assert tried.generate(PROMPT).tokens == engine("ar", target, None).generate(PROMPT).tokens


@pytest.mark.parametrize("policy", ["adaedl", "pearl", "fanout"])
def test_a_draft_is_needed(policy: str) -> None:
    with pytest.raises(ValueError, match=f"draft was None; policy '{policy}' needs a draft"):
        Engine(models()[0], policy=policy)


@pytest.mark.parametrize("policy", BASELINES)
def test_there_are_no_device_rounds(policy: str) -> None:
    message = f"policy was '{policy}'; on the device it must be ar, sps, specbranch"
    with pytest.raises(ValueError, match=message):
        engine(policy, *models(), rounds="device")


# ---------------------------------------------------------------- ngram


LOOKUPS = [
    ([1, 2, 3, 9, 8, 1, 2, 3], 3, [9, 8, 1]),
    ([1, 2, 3, 9, 5, 2, 3, 7, 1, 2, 3], 3, [9, 5, 2]),  # the longest end wins
    ([2, 3, 9, 9, 2, 3, 7, 4, 2, 3], 3, [7, 4, 2]),  # of equals the latest place
    ([5, 6, 7], 3, []),
    ([5], 3, []),
    ([4, 5, 6, 9, 6], 1, [9, 6, 9]),  # the copy runs into what it copied
    ([7, 7], 3, [7, 7, 7]),
    ([1, 2, 3, 9, 5, 2, 3, 7, 1, 2, 3], 2, [7, 1, 2]),
]


@pytest.mark.parametrize(("text", "max_ngram", "wanted"), LOOKUPS)
def test_ngram_looks_the_end_of_the_text_up(text: list, max_ngram: int, wanted: list) -> None:
    assert PromptLookup()._look_up(text, max_ngram, 3) == wanted


def test_ngram_indexes_as_the_text_grows() -> None:
    rng, growing, text = random.Random(0), PromptLookup(), []
    for _ in range(60):
        text += [rng.randrange(4) for _ in range(rng.randrange(1, 5))]
        assert growing._look_up(text, 3, 5) == PromptLookup()._look_up(text, 3, 5)


def test_ngram_accepts_a_phrase_that_comes_again() -> None:
    params = SamplingParams(max_new_tokens=60)
    stats = engine("ngram", counting(), None, gamma=4).generate(list(range(VOCAB)), params).stats
    # The prompt's last token is new; all that follows is known.
    assert stats.rolled_back == 0 and stats.target_forwards == 1 + 12  # 60 = 1 + 12 * (4 + 1) - 1


# ---------------------------------------------------------------- adaedl


def test_adaedl_stops_earlier_where_the_entropy_is_high() -> None:
    lengths = []
    for scale in (30.0, 2.0, 0.0):  # certain, in between, uniform
        draft = TableModel(counting().table * (scale / 30.0))
        session = open_session(counting(), draft, gamma=6, epsilon=0.5)
        lengths.append(len(session.draft_until(AdaEdl().max_entropy(0.5))))
    assert lengths[0] == 6 and lengths[2] == 0
    row = torch.softmax(torch.tensor([2.0] + [0.0] * (VOCAB - 1)), 0)
    entropy = float(-(row * row.log()).sum())
    for margin, length in ((1e-3, 6), (-1e-3, 0)):
        session = open_session(counting(), TableModel(counting().table / 15.0), gamma=6)
        assert len(session.draft_until(entropy + margin)) == length


def test_adaedl_moves_its_threshold_with_the_acceptance() -> None:
    policy = AdaEdl()
    assert policy.max_entropy(0.5) == pytest.approx(0.25 / 0.2)
    low, high = AdaEdl(), AdaEdl()
    down = up = 0.5
    for _ in range(5):
        down, up = high._adapted(down, 3, 3), low._adapted(up, 0, 1)
    assert down < 0.5 < up
    assert policy._adapted(0.5, 0, 0) == 0.5  # nothing judged, nothing learned


def test_adaedl_learns_nothing_from_behind_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens behind a rejection, and their number, must not reach the threshold."""
    seen: list[tuple[int, int]] = []
    right = AdaEdl._adapted

    def spy(self: AdaEdl, threshold: float, accepted: int, judged: int) -> float:
        seen.append((accepted, judged))
        return right(self, threshold, accepted, judged)

    monkeypatch.setattr(AdaEdl, "_adapted", spy)
    session, policy = open_session(*models(scale=1.5), gamma=6, epsilon=0.1), AdaEdl()
    for _ in range(20):
        origins = policy.round(session).origins
        accepted = origins.count("chain")
        assert seen[-1] == (accepted, accepted + origins.count("recovered"))
    assert session.stats.rolled_back > session.stats.rejections  # there was something behind


# ---------------------------------------------------------------- pearl


def test_pearl_judges_next_round_what_was_drafted_during_this_one() -> None:
    target, draft = models()
    session, policy = open_session(target, draft, gamma=4), Pearl()
    whole = 0
    for _ in range(20):
        ahead = list(policy._chain.tokens)
        verified = session.stats.target_forwards
        committed = policy.round(session)
        assert session.stats.target_forwards == verified + 1
        count = committed.origins.count("chain")
        assert committed.tokens[: min(count, len(ahead))] == ahead[:count]
        if "recovered" in committed.origins:
            assert committed.origins[-1] == "recovered" and len(policy._chain) == 0
        else:
            whole += 1
            assert count == len(ahead) + 1 and len(policy._chain) == 3
        # Both caches hold what they should: all but the last token, and nothing that was dropped.
        assert session.target.length == session.length - 1
        assert session.draft._prefix[: session.length] == (session.tokens[: session.draft.length])
    assert whole > 3


def test_pearl_never_waits_where_the_draft_is_right() -> None:
    """Equal models: the first round judges one token, every later one gamma of them."""
    target, _ = models()
    params = SamplingParams(max_new_tokens=41, temperature=1.0)
    result = engine("pearl", target, target, gamma=4).generate(PROMPT, params)
    assert result.origins == ["chain"] * 41
    assert result.stats.target_forwards == 11  # 1 + 10 * 4
    assert result.stats.rolled_back == result.stats.rejections == 0


def test_chains_split_and_join() -> None:
    chain = Chain([1, 2, 3], torch.arange(6.0).view(3, 2), torch.arange(3.0))
    first, rest = chain.split(1)
    assert (first.tokens, rest.tokens) == ([1], [2, 3])
    joined = first + rest
    assert joined.tokens == chain.tokens
    assert torch.equal(joined.logits, chain.logits) and torch.equal(joined.cutoff, chain.cutoff)
    assert (Chain() + rest) is rest
    assert Chain([1]).is_guess and not chain.is_guess and not Chain().is_guess


# ---------------------------------------------------------------- lookahead


def test_lookahead_finds_and_accepts_ngrams_of_its_own() -> None:
    params = SamplingParams(max_new_tokens=120)
    stats: Stats = engine("lookahead", counting(), None, gamma=3).generate(PROMPT, params).stats
    # Nothing but the Jacobi window can know them: the prompt has no number twice, and the n-grams
    # are there long before the text comes round again.
    assert stats.tokens_per_round > 2.5 and stats.acceptance_rate > 0.9


def test_lookahead_reads_its_window_as_a_tree() -> None:
    session, policy = open_session(counting(), None, gamma=3, window=4), Lookahead()
    for _ in range(6):
        policy.round(session)
    nodes = policy._window_nodes(session)
    assert nodes.parents == [-1, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7]
    for column in zip(*policy._levels, strict=True):
        assert [(token + 1) % VOCAB for token in column[:-1]] == list(column[1:])
    for first in policy._pool._found:
        assert policy._pool.after(first)[0] == tuple((first + i) % VOCAB for i in (1, 2, 3))


def test_pool_keeps_the_latest() -> None:
    pool = Pool(2)
    for rest in ((1, 1), (2, 2), (1, 1), (3, 3)):
        pool.add(7, rest)
    assert pool.after(7) == [(3, 3), (1, 1)] and pool.after(8) == []


def test_ngrams_share_their_beginnings() -> None:
    tree = tree_of([(1, 2, 3), (1, 2, 4), (2, 2), (1, 2, 3), ()])
    assert tree == Guesses([1, 2, 3, 4, 2, 2], [-1, 0, 1, 1, -1, 4])
    assert tree + Guesses([9, 9], [-1, 0]) == Guesses(
        [1, 2, 3, 4, 2, 2, 9, 9], [-1, 0, 1, 1, -1, 4, -1, 6]
    )


# ---------------------------------------------------------------- fanout


def test_fanout_spreads_its_budget_where_the_chain_may_break() -> None:
    assert spread([0.9, 0.9, 0.9, 0.9], 10) == [1, 1, 1, 7]
    assert spread([0.2, 0.9, 0.9], 10) == [8, 0, 2]
    assert spread([1.0, 0.5, 1.0], 10) == [0, 5, 5]
    assert spread([0.3], 4) == [4]
    assert spread([0.0, 0.0, 0.0], 3) == [2, 0, 1]  # the last point always has one


def test_fanout_settles_a_share_without_looking_ahead() -> None:
    """Losslessness: what stands behind a point must not reach its share."""
    rng = random.Random(1)
    for _ in range(200):
        confidence = [rng.random() for _ in range(6)]
        shares = spread(confidence, 12)
        assert sum(shares) == 12 and min(shares) >= 0 and shares[-1] >= 1
        for at in range(5):
            changed = confidence[: at + 1] + [rng.random() for _ in range(5 - at)]
            assert spread(changed, 12)[: at + 1] == shares[: at + 1]


def test_fanout_has_the_continuation_of_a_rejection_ready() -> None:
    target, draft = models(scale=1.2)
    session, policy = open_session(target, draft, gamma=4, k_max=8, epsilon=0.0), FanOut()
    bridged = 0
    for _ in range(25):
        before = len(policy._chain or ())
        committed = policy.round(session)
        broken = committed.origins.count("chain") < before
        hit = committed.origins[-1] == "branch"
        assert hit == (policy._chain is not None) == bool(policy._chain)
        bridged += broken and hit
        # Both caches hold the text but for its last token.
        assert session.target.length == session.draft.length == session.length - 1
        assert session.draft._prefix == session.tokens[:-1]
    assert bridged >= 3


@pytest.mark.parametrize("stage", ["overlap", "serial"])
def test_fanout_accounts_for_every_drafted_token(stage: str) -> None:
    tried = engine("fanout", *models(), epsilon=0.4, draft_stage=stage)
    params = SamplingParams(max_new_tokens=400, temperature=1.0)
    result = tried.generate(PROMPT, params)
    stats = result.stats
    in_flight = stats.drafted - stats.accepted - stats.rolled_back - stats.pruned
    assert 0 <= in_flight <= tried.settings.gamma
    assert stats.target_forwards == stats.rounds == stats.branch_points
    assert stats.committed == stats.accepted + stats.rounds - stats.branch_hits
    assert stats.accepted == stats.accepted_chain + stats.branch_hits
    assert stats.sibling_tokens > 0 and 0 < stats.branch_hit_rate < 1
