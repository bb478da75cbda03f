"""The engine's promises: determinism, streaming, stop conditions, cancellation, stats, errors."""

from __future__ import annotations

import threading

import pytest
import torch

from specbranch import Engine, SamplingParams
from specbranch.lanes import SerialLanes, ThreadLanes
from specbranch.models.protocol import ForwardOutput
from specbranch.policies import POLICIES
from specbranch.predictor import Keep, num_kept
from specbranch.testing.table_model import TableModel, TableState
from specbranch.text import TextStream

VOCAB, PROMPT = 12, [3, 4, 5]


def _pair(scale: float = 1.5) -> tuple[TableModel, TableModel]:
    target = TableModel.random(VOCAB, seed=1, scale=scale)
    return target, TableModel(target.table + TableModel.random(VOCAB, seed=2, scale=0.7).table)


class Letters:
    """A tokenizer whose token i is the i-th letter; token 11 is the two bytes of half a smiley."""

    vocab_size = VOCAB

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(ord("a") + token) for token in tokens)

    def stream_decoder(self) -> Letters:
        return self

    def push(self, token: int) -> str:
        return chr(ord("a") + token)

    def finish(self) -> str:
        return ""


# What "auto" does hangs on the clock, its tokens do not: test_auto.py.
@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "auto"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_same_seed_same_output(policy: str, temperature: float) -> None:
    target, draft = _pair()
    params = SamplingParams(max_new_tokens=80, temperature=temperature, seed=7)
    runs = [Engine(target, draft, policy=policy).generate(PROMPT, params) for _ in range(3)]
    assert runs[0].tokens == runs[1].tokens == runs[2].tokens
    assert runs[0].origins == runs[1].origins
    other = SamplingParams(max_new_tokens=80, temperature=temperature, seed=8)
    changed = Engine(target, draft, policy=policy).generate(PROMPT, other).tokens
    assert (changed == runs[0].tokens) == (temperature == 0.0)


@pytest.mark.parametrize("verify", ["rejection", "coupled"])
@pytest.mark.parametrize("draft_stage", ["serial", "overlap"])
@pytest.mark.parametrize("gamma", [1, 2, 7])
@pytest.mark.parametrize("policy", ["sps", "specbranch"])
def test_greedy_equals_ar(policy: str, gamma: int, draft_stage: str, verify: str) -> None:
    target, draft = _pair()
    wanted = Engine(target, policy="ar").generate(PROMPT).tokens
    for k_max, epsilon in ((1, 0.0), (4, 0.5), (VOCAB + 3, 1.0)):
        engine = Engine(
            target,
            draft,
            policy=policy,
            gamma=gamma,
            k_max=k_max,
            epsilon=epsilon,
            draft_stage=draft_stage,
            verify=verify,
        )
        assert engine.generate(PROMPT).tokens == wanted


def test_lanes_do_not_change_the_output() -> None:
    target, draft = _pair()
    params = SamplingParams(max_new_tokens=100, temperature=1.0)
    outputs = [
        Engine(target, draft, lanes=lanes).generate(PROMPT, params).tokens
        for lanes in (SerialLanes(), ThreadLanes(), ThreadLanes(1))
    ]
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("wanted", [1, 2, 3, 17])
def test_length_is_exact(policy: str, wanted: int) -> None:
    target, draft = _pair()
    result = Engine(target, draft, policy=policy, gamma=5).generate(
        PROMPT, SamplingParams(max_new_tokens=wanted)
    )
    assert len(result.tokens) == len(result.origins) == wanted
    assert result.finish_reason == "length"
    assert result.text is None


def test_fits_exactly_into_max_seq_len() -> None:
    target, draft = _pair()
    target.max_seq_len = draft.max_seq_len = 40
    for policy in POLICIES:
        engine = Engine(target, draft, policy=policy, gamma=8)
        result = engine.generate(PROMPT, SamplingParams(max_new_tokens=37, temperature=1.0))
        assert len(result.tokens) == 37
        with pytest.raises(ValueError, match=r"max_new_tokens was 38 .* at most 40"):
            engine.generate(PROMPT, SamplingParams(max_new_tokens=38))


@pytest.mark.parametrize("policy", POLICIES)
def test_eos_ends_the_request(policy: str) -> None:
    target, draft = _pair()
    free = Engine(target, draft, policy=policy).generate(PROMPT).tokens
    target.eos_token_ids = (free[9],)
    first = free.index(free[9])
    ended = Engine(target, draft, policy=policy).generate(PROMPT)
    assert (ended.tokens, ended.finish_reason) == (free[: first + 1], "eos")
    ignoring = Engine(target, draft, policy=policy).generate(
        PROMPT, SamplingParams(ignore_eos=True)
    )
    assert ignoring.tokens == free


@pytest.mark.parametrize("policy", POLICIES)
def test_stop_string_ends_the_text(policy: str) -> None:
    target, draft = _pair()
    engine = Engine(target, draft, tokenizer=Letters(), policy=policy)
    text = engine.generate("def").text
    stop = text[11:14]
    at = text.index(stop)
    params = SamplingParams(stop=(stop, "never"))
    result = engine.generate("def", params)
    assert (result.text, result.finish_reason) == (text[:at], "stop")
    assert "".join(map(engine.tokenizer.push, result.tokens)) == text[: at + 3]
    assert "".join(engine.stream("def", params)) == text[:at]


def test_stream_equals_generate_and_closing_cancels() -> None:
    target, draft = _pair()
    engine = Engine(target, draft, tokenizer=Letters())
    whole = engine.generate("abc").text
    assert "".join(engine.stream("abc")) == whole
    stream = engine.stream("abc")
    begun = next(stream)
    stream.close()
    assert engine.last_result.finish_reason == "cancelled"
    assert engine.last_result.text.startswith(begun) and len(engine.last_result.tokens) < 128
    ids = [token for piece in Engine(target, draft).stream([0, 1, 2]) for token in piece]
    assert ids == engine.generate("abc").tokens


def test_cancel_from_another_thread() -> None:
    target, draft = _pair()
    target.max_seq_len = draft.max_seq_len = 10**6
    engine = Engine(target, draft)
    timer = threading.Timer(0.2, engine.cancel)
    timer.start()
    result = engine.generate(PROMPT, SamplingParams(max_new_tokens=900_000))
    assert result.finish_reason == "cancelled"
    assert 0 < len(result.tokens) < 900_000
    timer.join()


def test_two_streams_may_alternate() -> None:
    target, draft = _pair()
    engine = Engine(target, draft)
    first = SamplingParams(max_new_tokens=50, temperature=1.0, seed=1)
    second = SamplingParams(max_new_tokens=50, temperature=1.0, seed=2)
    alone = [engine.generate(PROMPT, params).tokens for params in (first, second)]
    together: list[list[int]] = [[], []]
    streams = [engine.stream(PROMPT, first), engine.stream(PROMPT, second)]
    for _ in range(60):
        for idx, stream in enumerate(streams):
            together[idx] += next(stream, [])
    assert together == alone


@pytest.mark.parametrize("draft_stage", ["serial", "overlap"])
@pytest.mark.parametrize("policy", ["sps", "specbranch"])
def test_every_drafted_token_is_accounted_for(policy: str, draft_stage: str) -> None:
    target, draft = _pair()
    engine = Engine(target, draft, policy=policy, draft_stage=draft_stage)
    params = SamplingParams(max_new_tokens=400, temperature=1.0)
    result = engine.generate(PROMPT, params)
    stats = result.stats
    in_flight = stats.drafted - stats.accepted - stats.rolled_back - stats.pruned
    assert 0 <= in_flight <= engine.settings.gamma
    assert stats.committed >= stats.new_tokens == 400
    assert stats.target_forwards == stats.rounds
    accepted = sum(origin in ("chain", "branch") for origin in result.origins)
    # The last round may commit more than is asked for.
    assert accepted <= stats.accepted <= accepted + engine.settings.gamma + 1
    assert stats.committed == stats.accepted + stats.rounds - stats.branch_hits
    assert 0.0 < stats.acceptance_rate < 1.0
    assert 0.0 < stats.rollback_rate < 1.0
    for key in ("M", "RB", "bubble", "tokens_per_round", "branch_hit_rate"):
        assert isinstance(stats.to_dict()[key], float)
    assert "tokens/s" in stats.summary()


def test_ar_needs_no_draft_and_never_calls_it() -> None:
    target, draft = _pair()
    stats = Engine(target, draft, policy="ar").generate(PROMPT).stats
    assert stats.draft_forwards == 0 and stats.target_forwards == 128
    assert Engine(target, policy="ar").generate(PROMPT).origins == ["plain"] * 128


class _Broken(TableModel):
    """Gives NaN logits from the n-th forward on."""

    def new_state(self, max_seq_len: int, tree_slots: int) -> TableState:
        state = super().new_state(max_seq_len, tree_slots)
        forward, calls = state.forward, []

        def broken(*args: object, **kwargs: object) -> ForwardOutput:
            calls.append(1)
            output = forward(*args, **kwargs)
            nan = torch.full_like(output.logits, float("nan"))
            return output._replace(logits=nan) if len(calls) > 5 else output

        state.forward = broken  # type: ignore[method-assign]
        return state


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("which", ["target", "draft"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_reported(policy: str, which: str, temperature: float) -> None:
    models = dict(zip(("target", "draft"), _pair(), strict=True))
    models[which] = _Broken(models[which].table)
    engine = Engine(models["target"], models["draft"], policy=policy)
    params = SamplingParams(temperature=temperature)
    if which == "draft" and engine.draft is None:
        assert len(engine.generate(PROMPT, params).tokens) == 128
        return
    with pytest.raises(ValueError, match=r"NaN logits .*position"):
        engine.generate(PROMPT, params)


class _Class:
    """A predictor that always gives one class."""

    hidden_layers = 2

    def __init__(self, keep: Keep) -> None:
        self.keep = keep

    def predict(self, hidden: torch.Tensor, next_token: int) -> Keep:
        assert hidden.shape == (2, 3) and 0 <= next_token < VOCAB
        return self.keep


class _Featured(TableModel):
    """A table model with hidden states."""

    def new_state(self, max_seq_len: int, tree_slots: int) -> TableState:
        state = super().new_state(max_seq_len, tree_slots)
        forward = state.forward

        def featured(tokens: torch.Tensor, *args: object, hidden_layers: int = 0) -> ForwardOutput:
            output = forward(tokens, *args)
            return output._replace(hidden=torch.zeros(len(tokens), hidden_layers, 3))

        state.forward = featured  # type: ignore[method-assign]
        return state


@pytest.mark.parametrize("keep", Keep)
def test_a_predictor_has_its_place(keep: Keep) -> None:
    target, draft = _pair()
    featured = _Featured(target.table)
    engine = Engine(featured, draft, predictor=_Class(keep), epsilon=0.5)
    assert engine.generate(PROMPT).tokens == Engine(target, policy="ar").generate(PROMPT).tokens
    assert num_kept(keep, [0.9, 0.6, 0.4, 0.9], 0.5) == {0: 0, 1: 2, 2: 4}[int(keep)]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_predictor_may_be_given_to_any_policy(policy: str) -> None:
    target, draft = _pair()
    engine = Engine(_Featured(target.table), draft, policy=policy, predictor=_Class(Keep.ALL))
    assert engine.generate(PROMPT).tokens == Engine(target, policy="ar").generate(PROMPT).tokens


BAD_PARAMS = [
    ({"max_new_tokens": 0}, ValueError, "max_new_tokens was 0"),
    ({"max_new_tokens": 1.5}, TypeError, "max_new_tokens was 1.5"),
    ({"temperature": -1.0}, ValueError, "temperature was -1.0"),
    ({"temperature": float("nan")}, ValueError, "temperature was nan"),
    ({"temperature": "hot"}, TypeError, "temperature was 'hot'"),
    ({"temperature": 1e-9}, ValueError, "temperature was 1e-09"),
    ({"top_k": -1}, ValueError, "top_k was -1"),
    ({"top_p": 0.0}, ValueError, "top_p was 0.0"),
    ({"top_p": 1.1}, ValueError, "top_p was 1.1"),
    ({"min_p": 2.0}, ValueError, "min_p was 2.0"),
    ({"seed": -1}, ValueError, "seed was -1"),
    ({"seed": 2**63}, ValueError, "seed was"),
    ({"stop": ("",)}, ValueError, "stop contained an empty"),
    ({"stop": (3,)}, TypeError, "stop contained int"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_PARAMS)
def test_bad_sampling_params(bad: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SamplingParams(**bad)


BAD_ENGINE = [
    ({"policy": "magic"}, ValueError, "policy was 'magic'"),
    ({"gamma": 0}, ValueError, "gamma was 0"),
    ({"gamma": "4"}, TypeError, "gamma was '4'"),
    ({"k_max": 0}, ValueError, "k_max was 0"),
    ({"epsilon": 1.5}, ValueError, "epsilon was 1.5"),
    ({"draft_stage": "both"}, ValueError, "draft_stage was 'both'"),
    ({"verify": "maybe"}, ValueError, "verify was 'maybe'"),
    ({"max_ngram": 0}, ValueError, "max_ngram was 0"),
    ({"window": 65}, ValueError, "window was 65"),
    ({"max_seq_len": 10**9}, ValueError, "max_seq_len was"),
    ({"threads": 0}, ValueError, "threads was 0"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_ENGINE)
def test_bad_engine_arguments(bad: dict, error: type[Exception], message: str) -> None:
    target, draft = _pair()
    with pytest.raises(error, match=message):
        Engine(target, draft, **bad)


def test_models_must_fit_together() -> None:
    target, _ = _pair()
    with pytest.raises(ValueError, match="draft was None"):
        Engine(target)
    with pytest.raises(ValueError, match="draft has a vocabulary of 5 tokens"):
        Engine(target, TableModel.random(5, seed=0))
    with pytest.raises(ValueError, match="tokenizer has 12 tokens"):
        Engine(TableModel.random(5, seed=0), policy="ar", tokenizer=Letters())


BAD_PROMPTS = [
    ([], ValueError, "prompt was empty"),
    ("", ValueError, "prompt was empty"),
    ([1, VOCAB], ValueError, f"prompt had token id {VOCAB}"),
    ([-1], ValueError, "prompt had token id -1"),
    ([1.5], TypeError, "prompt contained 1.5"),
    ([True], TypeError, "prompt contained True"),
    (7, TypeError, "prompt was int"),
    (b"abc", TypeError, "prompt was bytes"),
    ([0] * 5000, ValueError, "after a prompt of 5000 tokens"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD_PROMPTS)
def test_bad_prompts(bad: object, error: type[Exception], message: str) -> None:
    target, draft = _pair()
    engine = Engine(target, draft, tokenizer=Letters())
    for call in (engine.generate, engine.stream, engine.events):
        with pytest.raises(error, match=message):
            call(bad)


def test_text_and_stop_need_a_tokenizer() -> None:
    target, draft = _pair()
    with pytest.raises(ValueError, match="prompt was text"):
        Engine(target, draft).generate("abc")
    with pytest.raises(ValueError, match="stop was given"):
        Engine(target, draft).generate(PROMPT, SamplingParams(stop="x"))
    with pytest.raises(TypeError, match="params was dict"):
        Engine(target, draft).generate(PROMPT, {"temperature": 1})
    tensor = torch.tensor(PROMPT)
    assert (
        Engine(target, draft).generate(tensor).tokens
        == Engine(target, draft).generate(PROMPT).tokens
    )


def test_text_stream_holds_back_what_may_become_a_stop() -> None:
    stream = TextStream(Letters(), ("cde", "ddd"))
    pieces = [stream.push(token) for token in (0, 2, 3, 0, 3, 3, 2, 3, 4, 5)]
    assert pieces[:4] == ["a", "", "", "cda"]
    assert stream.text == "acdadd" and stream.stopped
    assert stream.finish() == ""
    held = TextStream(Letters(), ("cde",))
    assert held.push(2) + held.push(3) == "" and held.finish() == "cd"
