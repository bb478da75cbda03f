"""Checkpoints that transformers serves: which way is taken, what is refused, the command line."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architectures import GPT, SERVED, Walk, build, reference
from models import checkpoints
from safetensors.torch import load_file, save_file
from tiny_checkpoint import byte_tokenizer

from specbranch import Engine, SamplingParams, load_model, load_tokenizer
from specbranch.cli import EXIT_ERROR, main
from specbranch.models import HFModel, LlamaModel
from specbranch.pair import DEMO_DIR

TOLERANCE = 1e-4
BYTES = {**GPT, "vocab_size": 256}


@pytest.mark.parametrize("name", ["GPT2", "Phi3"])
def test_a_saved_model_is_the_model(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(name, SERVED[name]).save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "specbranch"):
        model = load_model(tmp_path)
    assert isinstance(model, HFModel)
    assert (model.implementation, model.attention) == ("transformers", "tree_attention")
    assert "transformers, tree_attention" in caplog.text and "not native" in caplog.text
    walk = Walk()
    walk.run(model)
    assert walk.errors(reference(name))[0] < TOLERANCE


# What makes a model of the Llama family one that is not computed natively.
NOT_NATIVE: dict[str, tuple[str, dict[str, Any], int]] = {
    "yarn": (
        "llama2",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
        256,
    ),
    "a window": ("mistral", {"sliding_window": 64}, 64),
    "a window in some layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1},
        32,
    ),
    "gelu": ("llama2", {"hidden_act": "gelu"}, 256),
}


@pytest.mark.parametrize("name", NOT_NATIVE)
def test_what_the_native_code_does_not_know_goes_to_transformers(name: str, tmp_path: Path) -> None:
    family, changes, length = NOT_NATIVE[name]
    model = load_model(checkpoints.save(tmp_path, family, **changes))
    assert isinstance(model, HFModel) and model.max_seq_len == length
    tokens = torch.arange(30)
    logits = model.new_state(30, 30).forward(tokens).logits
    expected = checkpoints.reference(checkpoints.build(family, **changes), tokens.tolist())
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


def test_the_llama_family_stays_native(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints.save(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with caplog.at_level(logging.INFO, "specbranch"):
        model = load_model(folder)
    assert isinstance(model, LlamaModel) and model.implementation == "native"
    assert "native, llama" in caplog.text


def test_end_tokens_and_dtype(tmp_path: Path) -> None:
    build("GPT2", {**GPT, "eos_token_id": [7, 9]}).save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype="bfloat16")
    assert (model.eos_token_ids, model.dtype) == ((7, 9), torch.bfloat16)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_trained_weights_give_the_native_models_output(temperature: float) -> None:
    """The demo pair, both of it by way of transformers: same tokens, same rounds."""
    folders = [DEMO_DIR / name for name in ("target", "draft")]
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = [HFModel(load(folder, dtype=torch.float32)) for folder in folders]
    prompt = load_tokenizer(folders[0]).encode("def read(path):\n")
    params = SamplingParams(24, temperature, seed=3)
    native, served = (
        Engine(*pair, policy="specbranch").generate(prompt, params)
        for pair in (map(load_model, folders), theirs)
    )
    assert served.tokens == native.tokens
    assert served.stats.target_forwards == native.stats.target_forwards < 24


# ---------------------------------------------------------------------------- bad checkpoints
@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    build("Phi3", SERVED["Phi3"]).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


NORM, HEAD = "model.norm.weight", "lm_head.weight"
SPOILT: dict[str, tuple[Callable[[Path], object], type[Exception], list[str]]] = {
    "pickle only": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        ValueError,
        ["pytorch_model.bin", "pickle", "safetensors"],
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        FileNotFoundError,
        ["model.safetensors"],
    ),
    "truncated": (truncate, ValueError, ["model.safetensors", "whole"]),
    "a tensor is missing": (
        lambda f: edit_tensors(f, lambda t: t.pop(NORM)),
        ValueError,
        ["missing tensors", NORM],
    ),
    "a tensor of another shape": (
        lambda f: edit_tensors(f, lambda t: t.update({HEAD: torch.zeros(90, 48)})),
        ValueError,
        [HEAD],
    ),
    "no such type": (
        lambda f: edit_config(f, model_type="phi99", architectures=["Phi99ForCausalLM"]),
        ValueError,
        ["config.json", "phi99"],
    ),
    "no causal language model": (
        lambda f: edit_config(f, architectures=["Phi3ForTokenClassification"]),
        ValueError,
        ["Phi3ForTokenClassification", "Phi3ForCausalLM"],
    ),
    "quantised": (
        lambda f: edit_config(f, quantization_config={"quant_method": "awq"}),
        ValueError,
        ["quantization_config"],
    ),
    "encoder-decoder": (
        lambda f: edit_config(f, is_encoder_decoder=True),
        ValueError,
        ["encoder-decoder"],
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_bad_checkpoint_gets_one_clear_error(checkpoint: Path, name: str) -> None:
    spoil, error, named = SPOILT[name]
    spoil(checkpoint)
    with pytest.raises(error) as caught:
        load_model(checkpoint)
    message = str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in message and len(message) < 500
    assert all(part in message for part in named), message


@pytest.mark.parametrize("model_type", ["phi3", "phi99"])
def test_code_of_a_checkpoint_is_never_run(checkpoint: Path, model_type: str) -> None:
    (checkpoint / "evil.py").write_text(f"open({str(checkpoint / 'ran')!r}, 'w').close()\n")
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit_config(checkpoint, model_type=model_type, auto_map=names)
    if model_type == "phi3":
        assert load_model(checkpoint).implementation == "transformers"
    else:
        with pytest.raises(ValueError, match=r"config\.json is not a config that transformers"):
            load_model(checkpoint)
    assert not (checkpoint / "ran").exists()


def test_without_transformers_the_error_says_what_to_install(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"Phi3ForCausalLM.*pip install 'transformers>="):
        load_model(checkpoint)


def test_tensors_without_a_place_are_reported(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit_tensors(checkpoint, lambda t: t.update(extra=torch.zeros(2)))
    load_model(checkpoint)
    assert "1 tensors are not used, the first is extra" in caplog.text


# ---------------------------------------------------------------------------- the command line
@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target and a draft whose vocabulary is padded further."""
    folder = tmp_path_factory.mktemp("pair")
    for name, fields in (("target", BYTES), ("draft", {**BYTES, "vocab_size": 264, "n_layer": 1})):
        build("GPT2", fields).save_pretrained(folder / name)
        byte_tokenizer().save(str(folder / name / "tokenizer.json"))
    return folder / "target", folder / "draft"


def generate(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["generate", "def f():", "--max-new-tokens", "12", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_line_serves_such_a_pair(
    capsys: pytest.CaptureFixture[str], pair: tuple[Path, Path]
) -> None:
    target, draft = map(str, pair)
    engine = Engine(load_model(target), tokenizer=load_tokenizer(target), policy="ar")
    expected = engine.generate("def f():", SamplingParams(12)).text
    alone = generate(capsys, "--target", target, "--policy", "ar")
    both = generate(capsys, "--target", target, "--draft", draft)
    assert alone == both == (0, expected, "")


def test_a_draft_with_another_tokenizer_is_refused(
    capsys: pytest.CaptureFixture[str], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    draft = Path(shutil.copytree(pair[1], tmp_path / "draft"))
    path = draft / "tokenizer.json"
    tokens = json.loads(path.read_text())
    vocab = tokens["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(tokens))
    code, out, err = generate(capsys, "--target", str(pair[0]), "--draft", str(draft))
    assert (code, out) == (EXIT_ERROR, "")
    assert "another tokenizer" in err and "'a'" in err and "'b'" in err
    path.unlink()
    code, out, err = generate(capsys, "--target", str(pair[0]), "--draft", str(draft))
    assert (code, out) == (EXIT_ERROR, "")
    assert "264 tokens and no tokenizer.json" in err and "256" in err
