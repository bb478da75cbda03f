"""Models: the protocol that the engine asks for, and the Llama family that serves it."""

from __future__ import annotations

from .llama import LlamaModel
from .loader import load_config, load_model, model_from_tensors
from .protocol import CausalLM, DecoderState, ForwardOutput

__all__ = [
    "CausalLM",
    "DecoderState",
    "ForwardOutput",
    "LlamaModel",
    "load_config",
    "load_model",
    "model_from_tensors",
]
