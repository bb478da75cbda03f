"""Which transformers architectures are served, by which attention, how far from their own logits.

    python bench/architectures.py --out bench/results/architectures.json

Each model is small and random. It reads a prompt in pieces, grows a tree, keeps a branch of it,
rolls back and grows the tree again; every row of logits is compared with a plain forward of a
second copy of the model, untouched, over that row's own path. docs/architectures.md quotes it.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import record

from specbranch.models import HFModel

Config = dict[str, Any]

BASE: Config = {
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
WITHOUT_GROUPS = {key: value for key, value in BASE.items() if key != "num_key_value_heads"}
GPT: Config = {
    "vocab_size": 100,
    "n_positions": 128,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 4,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
SMALL: Config = {
    "vocab_size": 100,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
LATENT: Config = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FALCON = {**SMALL, "multi_query": True, "parallel_attn": True, "max_position_embeddings": 128}
SCALED = {"query_pre_attn_scalar": 20, "head_dim": 16, "sliding_window": 96}

# Name of the architecture in transformers, and what its config gets.
SERVED: dict[str, Config] = {
    "BioGpt": BASE,
    "CodeGen": {**GPT, "rotary_dim": 8},
    "Cohere": {**BASE, "logit_scale": 0.2},
    "Cohere2": {**BASE, "logit_scale": 0.2, "sliding_window": 96},
    "DeepseekV2": {**BASE, **LATENT},
    "DeepseekV3": {**BASE, **LATENT},
    "Ernie4_5": {**BASE, "head_dim": 16},
    "Falcon": {**FALCON, "alibi": False},
    "GPT2": GPT,
    "GPTBigCode": GPT,
    "GPTJ": {**GPT, "rotary_dim": 8},
    "GPTNeoX": WITHOUT_GROUPS,
    "Gemma": {**BASE, "head_dim": 16},
    "Gemma2": {**BASE, **SCALED, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 9.0},
    "Gemma3": {**BASE, **SCALED},
    "Glm": {**BASE, "head_dim": 16},
    "Glm4": {**BASE, "head_dim": 16},
    "GptOss": {**BASE, "head_dim": 16, "num_local_experts": 4, "sliding_window": 96},
    "Granite": {**BASE, "attention_multiplier": 0.3, "logits_scaling": 2.0},
    "GraniteMoe": {**BASE, "num_local_experts": 4},
    "Helium": {**BASE, "head_dim": 12},
    "Ministral3": {**BASE, "head_dim": 16},
    "Mistral": {**BASE, "sliding_window": 96},
    "Mixtral": {**BASE, "num_local_experts": 4},
    "Nemotron": BASE,
    "OPT": {**SMALL, "ffn_dim": 64, "max_position_embeddings": 128, "word_embed_proj_dim": 48},
    "Olmo": BASE,
    "Olmo2": BASE,
    "Olmo3": {**BASE, "sliding_window": 96},
    "Olmoe": {**BASE, "num_experts": 4, "num_experts_per_tok": 2},
    "Persimmon": WITHOUT_GROUPS,
    "Phi": BASE,
    "Phi3": BASE,
    "Phimoe": {**BASE, "num_local_experts": 4},
    "Qwen2Moe": {**BASE, **EXPERTS, "shared_expert_intermediate_size": 32},
    "Qwen3Moe": {**BASE, **EXPERTS, "head_dim": 16},
    "SeedOss": {**BASE, "head_dim": 16},
    "SmolLM3": BASE,
    "StableLm": {**BASE, "hidden_size": 64},
    "Starcoder2": {**BASE, "sliding_window": 96},
    "XGLM": {
        "vocab_size": 100,
        "d_model": 48,
        "ffn_dim": 64,
        "num_layers": 2,
        "attention_heads": 4,
        "max_position_embeddings": 128,
        "eos_token_id": None,
    },
}  # fmt: skip
REFUSED: dict[str, Config] = {
    "Bloom": {"vocab_size": 100, "hidden_size": 48, "n_layer": 2, "n_head": 4},
    "Falcon": {**FALCON, "alibi": True},
    "GPTNeo": {
        "vocab_size": 100,
        "hidden_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 64,
        "max_position_embeddings": 128,
    },
    "Jamba": {**BASE, "num_experts": 2},
    "Mamba": {"vocab_size": 100, "hidden_size": 48, "num_hidden_layers": 2},
    "MiniMax": {**BASE, "head_dim": 16, "num_local_experts": 4},
    "Mpt": {"vocab_size": 100, "d_model": 48, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    "OpenAIGPT": GPT,
    "Qwen3Next": {**BASE, "num_experts": 4},
    "RecurrentGemma": BASE,
    "Rwkv": {"vocab_size": 100, "hidden_size": 48, "num_hidden_layers": 2},
}
CONFIG_NAMES = {"Gemma3": "Gemma3TextConfig"}  # where it is not the architecture's name + Config


def has(name: str) -> bool:
    """Whether the installed transformers has the architecture."""
    return hasattr(transformers, CONFIG_NAMES.get(name, f"{name}Config")) and bool(_kind(name))


def _kind(name: str) -> Any:
    kinds = (getattr(transformers, f"{name}{end}", None) for end in ("ForCausalLM", "LMHeadModel"))
    return next((kind for kind in kinds if kind is not None), None)


def build(name: str, fields: Config, *, seed: int = 0, noise: float = 0.0) -> Any:
    """A random model in float32; the same arguments give the same one.

    ``noise`` is added to it, in multiples of the weights' own size: a draft that resembles it.
    """
    config = getattr(transformers, CONFIG_NAMES.get(name, f"{name}Config"))(**fields)
    torch.manual_seed(seed)
    model = _kind(name)(config).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.2)
            elif key.endswith("weight"):
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(std=0.3)
        torch.manual_seed(seed + 1)
        for weight in model.parameters() if noise else ():
            weight.add_(torch.randn_like(weight), alpha=noise * float(weight.std()))
    return model


def reference(name: str, **changes: Any) -> Any:
    """A second copy of a model, for plain forwards."""
    model = build(name, {**SERVED[name], **changes})
    if getattr(model.config, "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")  # the other one of transformers 4 leaves it out
    return model


@dataclass
class Walk:
    """A way through a state's protocol; each row of logits with the tokens that lead to it."""

    seed: int = 0
    rows: list[tuple[list[int], torch.Tensor]] = field(default_factory=list)

    def run(self, model: HFModel) -> None:
        """Prefill in two pieces, a tree, a kept branch, a chain, a rollback, the tree again."""
        rng = random.Random(self.seed)
        prompt = [rng.randrange(2, model.vocab_size) for _ in range(40)]
        state = model.new_state(64, 24)
        state.prefill(torch.tensor(prompt[:25]))
        state.prefill(torch.tensor(prompt[25:]))
        kept = self._grow(state, prompt, rng)
        self._forward(state, kept, [rng.randrange(2, model.vocab_size) for _ in range(3)], None)
        state.rollback(30)
        self._grow(state, prompt[:30], rng)

    def _grow(self, state: Any, prefix: list[int], rng: random.Random) -> list[int]:
        """Three forwards of six nodes with random parents; commits the deepest path."""
        paths: list[list[int]] = []
        tokens: list[int] = []
        for _ in range(3):
            new = [rng.randrange(2, state.model.vocab_size) for _ in range(6)]
            parents = [rng.randint(-1, len(paths) + idx - 1) for idx in range(6)]
            rows = state.forward(torch.tensor(new), parents).logits
            for row, token, parent in zip(rows, new, parents, strict=True):
                tokens.append(token)
                paths.append([*(paths[parent] if parent >= 0 else []), len(paths)])
                path = [tokens[node] for node in paths[-1]]
                self.rows.append((prefix + path, row.clone()))
        deepest = max(paths, key=len)
        state.commit(deepest)
        return prefix + [tokens[node] for node in deepest]

    def _forward(
        self, state: Any, prefix: list[int], tokens: list[int], parents: list[int] | None
    ) -> None:
        rows = state.forward(torch.tensor(tokens), parents).logits
        for idx, row in enumerate(rows):
            self.rows.append((prefix + tokens[: idx + 1], row.clone()))

    def errors(self, plain: Any) -> tuple[float, float]:
        """The largest difference from ``plain``'s own forwards, and the largest logit."""
        worst = largest = 0.0
        for tokens, row in self.rows:
            with torch.inference_mode():
                expected = plain(torch.tensor([tokens]), use_cache=False).logits[0, -1]
            worst = max(worst, float((row - expected).abs().max()))
            largest = max(largest, float(expected.abs().max()))
        return worst, largest


def measure(name: str) -> dict[str, Any]:
    """One row of the table."""
    model, walk = HFModel(build(name, SERVED[name])), Walk()
    walk.run(model)
    worst, largest = walk.errors(reference(name))
    return {
        "architecture": model.name,
        "attention": model.attention,
        "max_error": worst,
        "largest_logit": largest,
        "rows": len(walk.rows),
    }


def refusal(name: str) -> dict[str, str]:
    """Why an architecture is refused."""
    try:
        model = HFModel(build(name, REFUSED[name]))
    except ValueError as error:
        architecture, _, reason = str(error).partition(" cannot be served: ")
        return {"architecture": architecture, "reason": reason}
    raise RuntimeError(f"{model.name} was served; it is in the table of those that are not")


def collect() -> dict[str, Any]:
    """The whole table."""
    return {
        **record("architectures", "cpu"),
        "transformers": transformers.__version__,
        "served": [measure(name) for name in SERVED if has(name)],
        "refused": [refusal(name) for name in REFUSED if has(name)],
    }


def main() -> None:
    """Write the table, or print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file to be written; without it: stdout")
    out = parser.parse_args().out
    transformers.utils.logging.set_verbosity_error()
    text = json.dumps(collect(), indent=1) + "\n"
    if out is None:
        print(text, end="")
    else:
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
