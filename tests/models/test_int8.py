"""int8 weights: the model of the rounded numbers and no other, exact speculation, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import SERVED
from architectures import build as build_hf
from models.checkpoints import build, reference

from specbranch import Engine, SamplingParams, demo_pair, demo_predictor, layer_skip, load_model
from specbranch.cli import EXIT_ERROR, main
from specbranch.lanes import SerialLanes
from specbranch.models import LlamaModel, load_config, match_vocabulary, model_from_tensors
from specbranch.models.loader import check_weights
from specbranch.models.rounded import rounded
from specbranch.pair import DEMO_DIR

TOLERANCE = 1e-4
TOKENS = torch.arange(60) % 128
FAMILIES = ["llama2", "qwen2", "qwen3", "smollm"]  # tied and not, biases, head norms
TARGET = DEMO_DIR / "target"


def logits(model: Any) -> torch.Tensor:
    return model.new_state(64, 64).forward(TOKENS).logits.clone().float()


def round_rows(weight: torch.Tensor) -> torch.Tensor:
    """Each row in whole multiples of a 127th of its largest number."""
    rows = []
    for row in weight.detach():
        scale = row.abs().max() / 127
        rows.append((row / scale).round() * scale)
    return torch.stack(rows)


def exact_of_int8(folder: Path) -> LlamaModel:
    """A model with exact weights, and these on the grid of int8; an untied head, to round it."""
    weights = {name: tensor.float() for name, tensor in tensors_of(folder).items()}
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    made = {
        name: round_rows(weight) if name.endswith(("proj.weight", "lm_head.weight")) else weight
        for name, weight in weights.items()
    }
    return model_from_tensors(replace(load_config(folder), tied=False), made, dtype="float32")


@torch.no_grad()
def reference_of_int8(theirs: Any) -> torch.Tensor:
    """Logits by transformers, matrices rounded; the embedding is not, a tied head is."""
    head = round_rows(theirs.lm_head.weight)
    for name, weight in theirs.named_parameters():
        if name.endswith("proj.weight"):
            weight.copy_(round_rows(weight))
    hidden = theirs.model(TOKENS.unsqueeze(0), use_cache=False).last_hidden_state[0]
    return hidden @ head.T


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_that_of_the_rounded_weights(family: str, tmp_path: Path) -> None:
    theirs = build(family)
    theirs.save_pretrained(tmp_path)
    exact, expected = reference(theirs, TOKENS.tolist()), reference_of_int8(theirs)
    model = load_model(tmp_path, weights="int8")
    assert isinstance(model, LlamaModel) and model.weights == "int8"
    size = float(expected.abs().max())
    assert (logits(model) - expected).abs().max() < TOLERANCE * size
    assert (logits(model) - exact).abs().max() > 10 * TOLERANCE * size  # it can be told apart
    given = model_from_tensors(load_config(tmp_path), tensors_of(tmp_path), weights="int8")
    assert torch.equal(logits(given), logits(model))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_activations_of_other_dtypes(dtype: str) -> None:
    """Nearer to the same weights in float32 than the activations' rounding, and not the same."""
    narrow, wide = (load_model(TARGET, dtype=each, weights="int8") for each in (dtype, "float32"))
    error = (logits(narrow) - logits(wide)).abs().max() / logits(wide).abs().max()
    assert narrow.dtype == getattr(torch, dtype)
    assert 0 < error < (0.05 if dtype == "bfloat16" else 0.01)


def test_hidden_states_and_the_bytes() -> None:
    model, same = load_model(TARGET, weights="int8"), exact_of_int8(TARGET)
    ours, theirs = (
        each.new_state(64, 64).forward(TOKENS, hidden_layers=3).hidden for each in (model, same)
    )
    assert (ours - theirs).abs().max() < TOLERANCE * theirs.abs().max()
    assert isinstance(model, LlamaModel)
    kept = [model.embedding, model.head.weight, model.final_norm]
    for layer in model.layers:
        linears = (layer.qkv, layer.out, layer.gate_up, layer.down)
        assert all(linear.weight.dtype == torch.int8 for linear in linears)
        kept += [layer.input_norm, layer.mlp_norm, *(linear.weight for linear in linears)]
    assert sum(tensor.nbytes for tensor in kept) == model.config.int8_bytes()


def test_a_chain_is_bit_for_bit_its_single_steps() -> None:
    model = load_model(TARGET, weights="int8")
    torch.manual_seed(2)
    tokens = torch.randint(0, model.vocab_size, (49,))
    alone, together = model.new_state(64, 16), model.new_state(64, 16)
    for state in (alone, together):
        state.prefill(tokens[:40])
    chain = together.forward(tokens[40:]).logits
    for idx, token in enumerate(tokens[40:].split(1)):
        assert torch.equal(alone.forward(token).logits[0], chain[idx])
        alone.commit([0])


# ---------------------------------------------------------------------------- what it is made of
@pytest.mark.parametrize("stored", ["F32", "Q8_0"])
def test_gguf(stored: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from models.gguf_files import SIZES, write

    path = write(tmp_path / "model.gguf", build("llama3", **SIZES), stored)
    ours, same = load_model(path, weights="int8"), rounded(load_model(path))
    assert (logits(ours) - logits(same)).abs().max() < TOLERANCE * logits(same).abs().max()


def test_first_layers_and_another_vocabulary() -> None:
    target = load_model(TARGET, weights="int8")
    assert isinstance(target, LlamaModel)
    draft = layer_skip(target, 2)
    assert draft.weights == "int8" and draft.layers[1].qkv is target.layers[1].qkv
    assert torch.equal(logits(layer_skip(target, target.config.num_layers)), logits(target))
    same = layer_skip(exact_of_int8(TARGET), 2)
    assert (logits(draft) - logits(same)).abs().max() < TOLERANCE * logits(same).abs().max()
    padded = match_vocabulary(target, target.vocab_size + 5)
    assert torch.equal(logits(padded)[:, :-5], logits(target))


# ---------------------------------------------------------------------------- speculation
PROMPTS = ["class Node:\n    def __init__(self", "import os\n", "def add(a, b):"]
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.9, "seed": 5},
}


def run(target: Any, draft: Any, policy: str, sampling: str, **settings: Any) -> list[Any]:
    params = SamplingParams(max_new_tokens=24, ignore_eos=True, **SETTINGS[sampling])
    engine = Engine(target, draft, policy=policy, lanes=SerialLanes(1), **settings)
    tokenizer = demo_pair()[2]
    return [engine.generate(tokenizer.encode(prompt), params) for prompt in PROMPTS]


def tokens(results: list[Any]) -> list[list[int]]:
    return [result.tokens for result in results]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    found = {}
    for weights in ("exact", "int8"):
        pair = demo_pair(target_weights=weights, draft_weights=weights)
        found[f"{weights} target"], found[f"{weights} draft"] = pair[:2]
    assert [model.weights for model in found.values()] == ["exact"] * 2 + ["int8"] * 2
    for weights in ("exact", "int8"):
        found[f"{weights} alone"] = tokens(run(found[f"{weights} target"], None, "ar", "greedy"))
    return found


@pytest.mark.parametrize("draft", ["exact draft", "int8 draft"])
@pytest.mark.parametrize("target", ["exact target", "int8 target"])
@pytest.mark.parametrize("policy", ["sps", "specbranch", "fanout", "pearl", "adaedl", "auto"])
def test_every_policy_gives_the_target_s_own(
    models: dict[str, Any], policy: str, target: str, draft: str
) -> None:
    ours = run(models[target], models[draft], policy, "greedy")
    assert tokens(ours) == models[target.replace("target", "alone")]


@pytest.mark.parametrize("policy", ["lookahead", "ngram"])
def test_policies_without_a_draft(models: dict[str, Any], policy: str) -> None:
    assert tokens(run(models["int8 target"], None, policy, "greedy")) == models["int8 alone"]


def test_an_int8_draft_changes_nothing_that_is_sampled(models: dict[str, Any]) -> None:
    """Coupled verification draws the target's own tokens, whatever the draft."""
    target = models["exact target"]
    alone = run(target, None, "ar", "sampled", verify="coupled")
    ours = run(target, models["int8 draft"], "specbranch", "sampled", verify="coupled")
    assert tokens(ours) == tokens(alone) != models["exact alone"]


def test_the_int8_copy_is_a_well_aligned_draft(models: dict[str, Any]) -> None:
    ours = run(models["exact target"], models["int8 target"], "sps", "greedy")
    assert tokens(ours) == models["exact alone"]
    assert min(result.stats.acceptance_rate for result in ours) > 0.9


def test_h_rad_reads_an_int8_target(models: dict[str, Any]) -> None:
    target = models["int8 target"]
    predictor = demo_predictor(target)
    ours = run(
        target, models["int8 draft"], "specbranch", "greedy", predictor=predictor,
        gamma=predictor.gamma,
    )  # fmt: skip
    assert tokens(ours) == models["int8 alone"]


# ---------------------------------------------------------------------------- refusals
REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: load_model(TARGET, weights="int4"), "weights was 'int4'; it must be exact or int8"),
    (
        lambda: load_model(TARGET, weights="int8", backend="simt"),
        "weights was 'int8'.*on backend simt it must be 'exact'",
    ),
    (
        lambda: check_weights("int8", torch.device("cuda", 1), name="draft_weights"),
        "draft_weights was 'int8'.*on device cuda:1 it must be 'exact'",
    ),
    (
        lambda: rounded(load_model(TARGET, weights="int8")),  # type: ignore[arg-type]
        "target had int8 weights",
    ),
]


@pytest.mark.parametrize(("call", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_refused(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_what_transformers_runs_stays_exact(tmp_path: Path) -> None:
    build_hf("GPT2", SERVED["GPT2"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="weights was 'int8'; it must be 'exact' for a model that"):
        load_model(tmp_path, weights="int8")


def test_weights_that_are_not_finite_are_named() -> None:
    tensors = tensors_of(TARGET)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].index_fill(0, torch.tensor([3]), float("inf"))
    with pytest.raises(
        ValueError, match=r"layers\.1\.mlp\.gate_proj / mlp\.up_proj: .* not finite"
    ):
        model_from_tensors(load_config(TARGET), tensors, weights="int8")


# ---------------------------------------------------------------------------- the command line
def cli(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_generate(capsys: pytest.CaptureFixture[str], models: dict[str, Any]) -> None:
    folders = ["--target", str(TARGET), "--draft", str(DEMO_DIR / "draft")]
    flags = ["--target-weights", "int8", "--draft-weights", "int8", "--max-new-tokens", "12"]
    params = SamplingParams(max_new_tokens=12)
    engine = Engine(models["int8 target"], policy="ar", tokenizer=demo_pair()[2])
    expected = engine.generate(PROMPTS[0], params).tokens
    for named in (folders, []):  # the demo pair by its folders, and by default
        code, out, _ = cli(capsys, "generate", PROMPTS[0], *named, *flags, "--json")
        assert code == 0 and json.loads(out)["tokens"] == expected


def test_bench_names_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("import os\n", encoding="utf-8")
    argv = ["--policies", "sps:gamma=2", "--prompts", str(prompts), "--max-new-tokens", "8"]
    code, out, _ = cli(capsys, "bench", *argv, "--target-weights", "int8")
    assert code == 0 and "demo/target, int8 weights on cpu" in out and "demo/draft on cpu" in out
    code, out, _ = cli(capsys, "bench", *argv, "--draft-weights", "int8")
    assert code == 0 and "demo/draft, int8 weights on cpu" in out and "demo/target on cpu" in out


BAD = [
    (["generate", "a", "--target-weights", "int4"], "--target-weights"),
    (["generate", "a", "--policy", "ar", "--draft-weights", "int8"], "--draft-weights"),
    (["generate", "a", "--layer-skip", "1", "--draft-weights", "int8"], "--draft-weights"),
    (["bench", "--policies", "ngram", "--draft-weights", "int8"], "--draft-weights"),
    (["plan", "--traces", __file__, "--measure", "--target-weights", "int3"], "--target-weights"),
]


@pytest.mark.parametrize(
    ("argv", "named"), BAD, ids=[" ".join(argv[:1] + argv[-2:]) for argv, _ in BAD]
)
def test_bad_flags(capsys: pytest.CaptureFixture[str], argv: list[str], named: str) -> None:
    code, out, err = cli(capsys, *argv)
    assert (code, out) == (EXIT_ERROR, "") and named in err and err.count("\n") == 1


def test_info_says_the_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(cli(capsys, "info", "--target", str(TARGET), "--json")[1])
    size = found["models"]["target"]["int8_bytes"]
    assert size == load_config(TARGET).int8_bytes()
    text = cli(capsys, "info", "--target", str(TARGET))[1]
    assert f"{size / 1e6:.3g} MB in memory with int8 weights" in text
