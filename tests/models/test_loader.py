"""What cannot be loaded is refused in one clear error that names what is wrong."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import build, save
from safetensors.torch import load_file, save_file

from specbranch import devices, load_model
from specbranch.models import model_from_tensors
from specbranch.models.config import read_config


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("saved"), "llama2", num_hidden_layers=2)


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "drop"}))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refused(folder: Path, *named: str, error: type[Exception] = ValueError, **options: Any) -> None:
    """Loading raises ``error`` with one short line that holds each of ``named``."""
    with pytest.raises(error) as caught:
        load_model(folder, **options)
    message = str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in message and len(message) < 400
    for part in named:
        assert part in message


def test_the_copy_loads(checkpoint: Path) -> None:
    assert load_model(checkpoint).vocab_size == 128


def test_no_directory(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere", "directory", error=FileNotFoundError)


def test_a_file_for_a_directory(checkpoint: Path) -> None:
    refused(checkpoint / "config.json", "not a directory", error=FileNotFoundError)


def test_no_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    refused(checkpoint, "config.json", error=FileNotFoundError)


@pytest.mark.parametrize("content", [b"{ broken", b"", b"[1]", b"\xff\xfe{}"])
def test_broken_config(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "config.json").write_bytes(content)
    refused(checkpoint, "config.json")


def test_broken_generation_config(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text("{ broken")
    refused(checkpoint, "generation_config.json")


HALF_LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "high_freq_factor": 4.0}
REFUSED_FIELDS: list[tuple[dict[str, Any], list[str]]] = [
    ({"architectures": ["GPT2LMHeadModel"]}, ["GPT2LMHeadModel", "LlamaForCausalLM"]),
    ({"architectures": []}, ["architecture"]),
    ({"architectures": "drop"}, ["architecture"]),
    ({"rope_parameters": {"rope_type": "spiral"}}, ["spiral"]),
    ({"rope_parameters": "drop", "rope_scaling": {"type": "dynamic"}}, ["rope", "dynamic"]),
    ({"rope_parameters": HALF_LLAMA3}, ["llama3", "low_freq_factor"]),
    ({"rope_parameters": {"rope_type": "linear"}}, ["linear", "factor"]),
    ({"rope_parameters": "linear", "rope_scaling": "linear"}, ["rope", "linear"]),
    ({"rope_parameters": {"rope_type": "linear", "factor": "x"}}, ["rope", "factor", "x"]),
    (
        {"architectures": ["MistralForCausalLM"], "sliding_window": 64},
        ["MistralForCausalLM", "type llama", "LlamaForCausalLM"],
    ),
    ({"quantization_config": {"quant_method": "awq"}}, ["quantization_config"]),
    ({"hidden_act": "gelo"}, ["gelo"]),
    ({"layer_types": ["full_attention", "conv"]}, ["conv", "cannot be served"]),
    ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
    ({"pretraining_tp": 2}, ["pretraining_tp"]),
    ({"hidden_size": "drop"}, ["hidden_size", "None"]),
    ({"vocab_size": "128"}, ["vocab_size", "'128'"]),
    ({"num_hidden_layers": 0}, ["num_hidden_layers", "0"]),
    ({"num_attention_heads": True}, ["num_attention_heads", "True"]),
    ({"num_key_value_heads": 3}, ["num_key_value_heads", "3"]),
    ({"num_key_value_heads": "2"}, ["num_key_value_heads", "'2'"]),
    ({"head_dim": -12}, ["head_dim", "-12"]),
    ({"head_dim": 12.0}, ["head_dim", "12.0"]),
    ({"rms_norm_eps": "small"}, ["rms_norm_eps", "small"]),
    ({"eos_token_id": "</s>"}, ["eos_token_id", "</s>"]),
]


@pytest.mark.parametrize(("changes", "named"), REFUSED_FIELDS, ids=lambda value: str(value)[:50])
def test_refused_field(checkpoint: Path, changes: dict[str, Any], named: list[str]) -> None:
    (checkpoint / "generation_config.json").unlink(missing_ok=True)
    edit_config(checkpoint, **changes)
    refused(checkpoint, "config.json", *named)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 32},
        {"architectures": ["MistralForCausalLM"], "sliding_window": 4096},
    ],
    ids=["unused", "longer than the positions"],
)
def test_a_window_that_never_slides_is_no_reason(tmp_path: Path, changes: dict[str, Any]) -> None:
    family = "qwen2" if "Qwen2ForCausalLM" in changes["architectures"] else "mistral"
    folder = save(tmp_path, family)
    edit_config(folder, **changes)
    load_model(folder)


TENSOR = "model.layers.1.mlp.down_proj.weight"


def test_missing_tensor(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.__delitem__(TENSOR))
    refused(checkpoint, TENSOR, "missing", "[48, 80]")


def test_missing_head(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.__delitem__("lm_head.weight"))
    refused(checkpoint, "lm_head.weight", "missing")


def test_extra_tensor(checkpoint: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    edit_tensors(checkpoint, lambda tensors: tensors.update({name: torch.zeros(48)}))
    refused(checkpoint, name)


def test_a_layer_too_many(checkpoint: Path) -> None:
    edit_config(checkpoint, num_hidden_layers=1)
    refused(checkpoint, "model.layers.1.")


def test_old_rotary_buffers_are_no_reason(checkpoint: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(checkpoint, lambda tensors: tensors.update({name: torch.zeros(6)}))
    load_model(checkpoint)


def test_wrong_shape(checkpoint: Path) -> None:
    edit_tensors(checkpoint, lambda tensors: tensors.update({TENSOR: torch.zeros(48, 81)}))
    refused(checkpoint, TENSOR, "[48, 81]", "[48, 80]")


def test_integer_tensor(checkpoint: Path) -> None:
    zeros = torch.zeros(48, 80, dtype=torch.int8)
    edit_tensors(checkpoint, lambda tensors: tensors.update({TENSOR: zeros}))
    refused(checkpoint, TENSOR, "int8")


@pytest.mark.parametrize("keep", [0, 4, 200, 0.5, -1])
def test_truncated_safetensors(checkpoint: Path, keep: float) -> None:
    path = checkpoint / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    refused(checkpoint, "model.safetensors")


def test_pickle_only(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    refused(checkpoint, "pytorch_model.bin", "pickle", "safetensors")


def test_no_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    refused(checkpoint, "model.safetensors", error=FileNotFoundError)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    build("llama2").save_pretrained(tmp_path, max_shard_size="60KB")
    return tmp_path


def test_shard_missing(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    refused(sharded, shard.name, "index.json", error=FileNotFoundError)


def test_tensor_missing_from_its_shard(sharded: Path) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    shutil.copy(first, second)
    refused(sharded, second.name, "tensor")


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {"a": 1}}', "{ broken"])
def test_broken_index(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    refused(sharded, "model.safetensors.index.json")


@pytest.mark.parametrize("dtype", ["float8", "int8", torch.int32, torch.float64, None, 16])
def test_bad_dtype(checkpoint: Path, dtype: Any) -> None:
    refused(checkpoint, "dtype", str(dtype), "bfloat16", dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "meta", "mps", None, ""])
def test_bad_device(checkpoint: Path, device: Any) -> None:
    refused(checkpoint, "device", "cpu", device=device)


def test_no_cuda(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for reason in ("no NVIDIA driver was found", "no CUDA device was found"):
        monkeypatch.setattr(devices, "_why_no_device", lambda reason=reason: reason)
        for device in ("cuda", "cuda:1"):
            refused(checkpoint, device, reason, "cpu", device=device)


def test_end_tokens(checkpoint: Path) -> None:
    generation = checkpoint / "generation_config.json"
    generation.unlink(missing_ok=True)
    for given, expected in ((None, ()), (3, (3,)), ([3, 5], (3, 5))):
        edit_config(checkpoint, eos_token_id=given)
        assert load_model(checkpoint).eos_token_ids == expected
    generation.write_text('{"eos_token_id": [7]}')
    assert load_model(checkpoint).eos_token_ids == (7,)


class Made(Mapping[str, torch.Tensor]):
    """Tensors that are made when they are asked for; counts how often each was."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.asked: Counter[str] = Counter()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.asked[name] += 1
        return self.tensors[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_model_from_tensors_is_the_model_of_the_files(saved: Path) -> None:
    made = Made(load_file(saved / "model.safetensors"))
    model = model_from_tensors(read_config(saved), made)
    tokens = torch.arange(20)
    logits = [each.new_state(20, 20).forward(tokens).logits for each in (model, load_model(saved))]
    assert torch.equal(*logits)
    assert set(made.asked) == set(made.tensors) and set(made.asked.values()) == {1}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop(TENSOR), [TENSOR, "missing"]),
        (lambda tensors: tensors.update({TENSOR: torch.zeros(48, 81)}), [TENSOR, "[48, 81]"]),
        (lambda tensors: tensors.update(other=torch.zeros(1)), ["other", "not part of"]),
    ],
    ids=["missing", "wrong shape", "left over"],
)
def test_model_from_wrong_tensors(
    saved: Path, change: Callable[[dict[str, torch.Tensor]], None], named: list[str]
) -> None:
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    with pytest.raises(ValueError) as caught:
        model_from_tensors(read_config(saved), tensors)
    assert all(part in str(caught.value) for part in named)
