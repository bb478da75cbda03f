"""Loading holds one copy of the weights in host memory, and a layer's worth of what is in between.

Measured from outside: the peak resident size of a process that does nothing else, files that are
mapped into it included.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from models.gguf_files import write

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# 200 MB in float32, no matrix more than a ninth of it.
SIZES = {
    "vocab_size": 8192,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
}
#: Peak over the weights' own bytes.
MOST = 1.3
PROGRAM = """
import json, sys
from pathlib import Path
import gguf, torch
from safetensors.torch import load_file
from specbranch import load_model
from specbranch.models import load_config, model_from_tensors

path, way = Path(sys.argv[1]), sys.argv[2]

def peak():  # not ru_maxrss: a child inherits that from who started it
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

torch.ones(9).sum()
before = peak()
if way in ("exact", "int8"):
    model = load_model(path, weights=way)
else:
    tensors = {}
    for shard in path.glob("*.safetensors"):
        tensors |= {name: each.clone() for name, each in load_file(shard).items()}
    model = model_from_tensors(load_config(path), tensors, dtype="float32")
taken = peak() - before
kept = [model.embedding, model.head.weight]
for layer in model.layers:
    kept += [layer.qkv.weight, layer.out.weight, layer.gate_up.weight, layer.down.weight]
print(json.dumps({"taken": taken, "kept": sum(each.nbytes for each in kept)}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same random weights in shards, and as GGUF files of two types."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=False)
    model = transformers.LlamaForCausalLM(config).float()
    model.save_pretrained(folder / "shards", max_shard_size="50MB")
    assert len(list((folder / "shards").glob("*.safetensors"))) > 3
    paths = {"shards": folder / "shards"}
    for stored in ("F32", "Q8_0"):
        paths[stored] = write(folder / f"{stored}.gguf", model, stored)
    return paths


def loading(path: Path, way: str) -> dict[str, int]:
    """Bytes that loading has ``taken`` at most, and those of the weights that are ``kept``."""
    command = [sys.executable, "-c", PROGRAM, str(path), way]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def peak(path: Path, way: str = "exact") -> float:
    """Bytes that loading has taken at most, over those of the weights."""
    found = loading(path, way)
    assert found["kept"] > 1.9e8  # nothing of it was narrowed
    return found["taken"] / found["kept"]


@pytest.mark.parametrize("kind", ["shards", "F32", "Q8_0"])
def test_one_copy(files: dict[str, Path], kind: str) -> None:
    assert 0.9 < peak(files[kind]) < MOST


def test_int8_is_never_whole_in_float32(files: dict[str, Path]) -> None:
    """Rounded matrix by matrix: what is kept, and as much on top as for a model of float32."""
    found = loading(files["shards"], "int8")
    assert found["kept"] < 0.75e8
    assert found["taken"] < found["kept"] + (MOST - 1) * 2e8


def test_a_second_copy_would_be_seen(files: dict[str, Path]) -> None:
    assert peak(files["shards"], "all tensors at once") > 1.8
