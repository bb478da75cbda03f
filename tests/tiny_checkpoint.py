"""Tiny random checkpoints in Hugging Face format, with a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

NUM_TOKENS = 256


def save_pair(folder: Path) -> tuple[Path, Path]:
    """A target and a draft under ``folder``."""
    target = save_checkpoint(folder / "target", hidden_size=64, num_layers=2, seed=0)
    draft = save_checkpoint(folder / "draft", hidden_size=32, num_layers=1, seed=1)
    return target, draft


def save_checkpoint(folder: Path, *, hidden_size: int, num_layers: int, seed: int) -> Path:
    """A Llama checkpoint whose tokens are the 256 bytes."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=NUM_TOKENS,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def byte_tokenizer() -> Tokenizer:
    """One token a byte, no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: idx for idx, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
