"""Architectures by way of transformers: trees against plain forwards, and what is refused.

The reference is a second copy of each model that only transformers touches. A tree that is wrong in
one place is rejected, by the comparer and by the model's own check (below).
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from architectures import BASE, FALCON, GPT, REFUSED, SERVED, Walk, build, has, reference

from specbranch import Engine, SamplingParams
from specbranch.cache import SlotCache
from specbranch.models import HFModel, hf
from specbranch.models import state as state_module
from specbranch.rounds import why_not_on_device
from specbranch.session import Settings
from specbranch.tree import SpeculationTree

TOLERANCE = 1e-4
TREE, DENSE = "tree_attention", "dense mask"
TESTED = [
    "Cohere2", "DeepseekV3", "Falcon", "GPT2", "GPTJ", "GPTNeoX", "Gemma", "Gemma2", "Gemma3",
    "GptOss", "Granite", "Mistral", "Mixtral", "OPT", "Olmo", "Olmo2", "Phi", "Phi3", "Qwen2Moe",
    "StableLm",
]  # fmt: skip
NOISE = {"GPT2": 0.6}  # of the draft, where 0.2 is always right
PROMPT = [5, 17, 42, 8, 63, 29, 71, 90, 11]


class Case:
    """A model as we serve it, and its copy."""

    def __init__(self, name: str) -> None:
        if not has(name):
            pytest.skip(f"transformers {transformers.__version__} has no {name}")
        self.name = name
        self.ours, self.theirs = HFModel(build(name, SERVED[name])), reference(name)


@pytest.fixture(scope="module", params=TESTED)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity(level)


# ---------------------------------------------------------------------------- parity
def test_chunks_branches_commit_and_rollback(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "PREFILL_CHUNK", 8)
    walk = Walk(seed=1)
    walk.run(case.ours)
    worst, largest = walk.errors(case.theirs)
    assert len(walk.rows) == 39
    assert largest > 0.5, "logits this small would agree by chance"
    assert worst < TOLERANCE


def test_hidden_states_are_the_last_layers_outputs(case: Case) -> None:
    """Before the final norm: behind it they must be what transformers gives for the last layer."""
    tokens = torch.tensor([3, 50, 7, 9])
    hidden = case.ours.new_state(16, 4).forward(tokens, hidden_layers=2).hidden
    assert hidden is not None
    with torch.inference_mode():
        plain = case.theirs(tokens[None], output_hidden_states=True, use_cache=False).hidden_states
        normed = final_norm(case.theirs)(hidden[:, 1])
    assert len(plain) == 3, "embedding, first layer, last layer behind the norm"
    torch.testing.assert_close(hidden[:, 0], plain[1][0], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(normed, plain[2][0], atol=TOLERANCE, rtol=0)
    assert (hidden[:, 1] - plain[2][0]).abs().max() > 1e-2, "the norm was applied already"


def final_norm(model: torch.nn.Module) -> torch.nn.Module:
    """The last norm that belongs to no layer."""
    return [
        module
        for name, module in model.base_model.named_modules()
        if "Norm" in type(module).__name__ and not re.search(r"\.\d+\.", name)
    ][-1]


def test_greedy_output_is_that_of_transformers(case: Case) -> None:
    draft = HFModel(build(case.name, SERVED[case.name], noise=NOISE.get(case.name, 0.2)))
    config = transformers.GenerationConfig(max_new_tokens=20, do_sample=False, pad_token_id=0)
    with torch.inference_mode():
        out = case.theirs.generate(torch.tensor([PROMPT]), generation_config=config)
    expected = out[0, len(PROMPT) :].tolist()
    params = SamplingParams(20, ignore_eos=True)
    for policy in ("sps", "specbranch"):
        result = Engine(case.ours, draft, policy=policy, threads=1).generate(PROMPT, params)
        assert result.tokens == expected
        assert result.stats.drafted > result.stats.accepted > 0, "no draft, or its own target"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["GPT2", "Gemma2"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    model = HFModel(build(name, SERVED[name]).to(dtype))
    assert model.dtype == dtype
    walk = Walk()
    walk.run(model)
    worst, largest = walk.errors(reference(name).to(dtype))
    assert worst < 16 * torch.finfo(dtype).eps * largest


def test_the_kernels_serve_it_too() -> None:
    """Those of a CUDA device, emulated."""
    model = HFModel(build("GPT2", SERVED["GPT2"]), backend="simt")
    assert model.attention == TREE
    walk = Walk()
    walk.run(model)
    assert walk.errors(reference("GPT2"))[0] < TOLERANCE


# ---------------------------------------------------------------------------- mistakes are seen
def sees_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SpeculationTree.bits
    monkeypatch.setattr(SpeculationTree, "bits", lambda *args: whole(*args) | 3)


def positions_are_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    run = HFModel.run

    def wrong(self: HFModel, tokens: torch.Tensor, positions: torch.Tensor, *args, **kwargs):
        first = int(positions.min())
        return run(self, tokens, torch.arange(first, first + len(tokens)), *args, **kwargs)

    monkeypatch.setattr(HFModel, "run", wrong)


def commit_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: SlotCache, path: list[int]) -> None:
        self.length += len(path)

    monkeypatch.setattr(SlotCache, "commit", wrong)


@pytest.mark.parametrize("mistake", [sees_siblings, positions_are_slots, commit_moves_nothing])
@pytest.mark.parametrize("name", ["GPT2", "GPTJ"])
def test_a_mistake_is_seen(
    name: str, mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    with pytest.raises(ValueError, match=r"cannot be served: .*logits differ by .* at most 0.001"):
        HFModel(build(name, SERVED[name]))
    walk = Walk()
    walk.run(HFModel(build(name, SERVED[name]), check=False))
    assert walk.errors(reference(name))[0] > 100 * TOLERANCE


# ---------------------------------------------------------------------------- which attention
@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("GPT2", TREE),
        ("Mistral", TREE),
        ("Granite", TREE),  # its own scale
        ("Gemma2", DENSE),  # soft-capping
        ("GptOss", DENSE),  # sinks
        ("DeepseekV3", DENSE),  # keys longer than values
        ("Falcon", DENSE),  # not in the registry
    ],
)
def test_which_attention_serves(name: str, attention: str) -> None:
    model = HFModel(build(name, SERVED[name]))
    assert (model.attention, model.implementation) == (attention, "transformers")
    assert model.parity is not None and model.parity < 1e-4


def test_the_model_still_works_without_us() -> None:
    inner = build("GPT2", SERVED["GPT2"])
    served, tokens = HFModel(inner), torch.tensor([PROMPT])
    assert served.attention == TREE
    with torch.inference_mode():
        torch.testing.assert_close(inner(tokens).logits, reference("GPT2")(tokens).logits)


def test_one_model_on_two_threads_keeps_hidden_states_apart() -> None:
    model = HFModel(build("GPT2", SERVED["GPT2"]))
    expected = model.new_state(16, 4).forward(torch.arange(4), hidden_layers=2).hidden
    stop = threading.Event()

    def other() -> None:
        while not stop.is_set():
            model.new_state(16, 4).forward(torch.arange(4) + 9)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        for _ in range(50):
            found = model.new_state(16, 4).forward(torch.arange(4), hidden_layers=2).hidden
            torch.testing.assert_close(found, expected)
    finally:
        stop.set()
        thread.join()


def test_rounds_stay_on_the_host() -> None:
    model = HFModel(build("GPT2", SERVED["GPT2"]))
    reason = why_not_on_device("sps", Settings(), model, model)
    assert reason is not None and "HFModel" in reason


# ---------------------------------------------------------------------------- lengths
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "short_factor": [1.0] * 6,
    "long_factor": [2.0] * 6,
    "original_max_position_embeddings": 48,
}
LENGTHS: dict[str, tuple[str, dict[str, Any], int]] = {
    "positions": ("Olmo", {}, 128),
    "positions of another name": ("GPT2", {}, 128),
    "window": ("Mistral", {"sliding_window": 32}, 32),
    "window of some layers": ("Gemma3", {"sliding_window": 32}, 32),
    "window that no layer has": (
        "Gemma3",
        {"sliding_window": 32, "layer_types": ["full_attention"] * 2},
        128,
    ),
    "window that is off": ("Qwen2Moe", {"sliding_window": 32, "use_sliding_window": False}, 128),
    "window longer than positions": ("Mistral", {"sliding_window": 4096}, 128),
    "rope by length": (
        "Phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 48},
        48,
    ),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_the_usable_length(name: str) -> None:
    architecture, changes, expected = LENGTHS[name]
    model = HFModel(build(architecture, {**SERVED[architecture], **changes}))
    assert model.max_seq_len == expected
    with pytest.raises(ValueError, match=f"1 .. {expected}"):
        model.new_state(expected + 1, 4)


def test_up_to_its_window_a_model_is_plain_attention() -> None:
    """A tree at the window's end, in slots beyond it."""
    changes = {"sliding_window": 24}
    model = HFModel(build("Mistral", {**SERVED["Mistral"], **changes}))
    tokens = torch.arange(30, 53)
    state = model.new_state(24, 8)
    state.prefill(tokens)
    rows = state.forward(torch.tensor([1, 2, 3, 4]), [-1, -1, -1, -1]).logits
    for row, token in zip(rows, (1, 2, 3, 4), strict=True):
        ids = torch.cat((tokens, torch.tensor([token])))[None]
        with torch.inference_mode():
            expected = reference("Mistral", **changes)(ids, use_cache=False).logits[0, -1]
        torch.testing.assert_close(row, expected, atol=TOLERANCE, rtol=0)


def test_a_length_of_the_callers() -> None:
    model = HFModel(build("GPT2", SERVED["GPT2"]), max_seq_len=40)
    assert model.max_seq_len == 40
    for wanted in (0, 33):
        with pytest.raises(ValueError, match=rf"max_seq_len was {wanted}.*1 .. 32 \(sliding_windo"):
            HFModel(
                build("Mistral", {**SERVED["Mistral"], "sliding_window": 32}), max_seq_len=wanted
            )


# ---------------------------------------------------------------------------- refusals
REASONS = {
    "Bloom": "ALiBi",
    "Falcon": "ALiBi",
    "GPTNeo": "gpt_neo masks by slot",
    "Jamba": "linear_attention|recurrent",
    "Mamba": "linear_attention|recurrent",
    "MiniMax": "linear_attention",
    "Mpt": "ALiBi",
    "OpenAIGPT": "does not keep keys",
    "Qwen3Next": "linear_attention",
    "RecurrentGemma": "linear_attention|does not keep keys",
    "Rwkv": "recurrent state",
}


@pytest.mark.parametrize("name", REFUSED)
def test_architectures_that_are_refused(name: str) -> None:
    if not has(name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    with pytest.raises(ValueError, match=rf"{name}\w+ cannot be served: .*({REASONS[name]})"):
        HFModel(build(name, REFUSED[name]))


def encoder_decoder() -> Any:
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=50, **sizes))


def bidirectional() -> Any:
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=100, num_hidden_layers=1, **sizes)
    return transformers.BertLMHeadModel(config)


def quantised() -> Any:
    model = build("GPT2", GPT)
    model.config.quantization_config = {"quant_method": "awq"}
    return model


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "encoder-decoder": (encoder_decoder, "encoder-decoder"),
    "cross-attention": (
        lambda: build("GPT2", {**GPT, "add_cross_attention": True}),
        "cross-attention",
    ),
    "bidirectional": (bidirectional, "logits differ by|attention_mask"),
    "quantised": (quantised, "quantization_config"),
    "float64": (lambda: build("GPT2", GPT).double(), "float64; it must be float32"),
    "meta": (lambda: build("GPT2", GPT).to("meta"), "model was on meta"),
    "too short": (lambda: build("GPT2", {**GPT, "n_positions": 9}), "takes 9 tokens; 14"),
    "more logits than embeddings": (
        lambda: widened(build("Olmo", {**BASE, "tie_word_embeddings": False})),
        "logits for 110 tokens and reads 100",
    ),
}


def widened(model: Any) -> Any:
    model.lm_head = torch.nn.Linear(48, 110)
    return model


@pytest.mark.parametrize("name", REFUSALS)
def test_models_that_are_refused(name: str) -> None:
    make, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        HFModel(make())


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match="model was Linear"):
        HFModel(torch.nn.Linear(2, 2))


def test_an_old_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.55.4")
    with pytest.raises(ModuleNotFoundError, match=r"4.55.4.*pip install 'transformers>=4.56'"):
        hf.require_transformers()


def test_a_falcon_without_alibi_differs_in_nothing_else() -> None:
    """So that its refusal is ALiBi's."""
    assert REFUSED["Falcon"] == {**FALCON, "alibi": True}
    assert SERVED["Falcon"] == {**FALCON, "alibi": False}
