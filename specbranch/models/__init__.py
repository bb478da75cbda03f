"""Models: the protocol that the engine asks for, and those that serve it.

The Llama family natively, other architectures by way of transformers.
"""

from __future__ import annotations

from .hf import HFModel
from .llama import LlamaModel
from .loader import load_config, load_model, model_from_tensors
from .padded import match_vocabulary
from .protocol import CausalLM, DecoderState, ForwardOutput

__all__ = [
    "CausalLM",
    "DecoderState",
    "ForwardOutput",
    "HFModel",
    "LlamaModel",
    "load_config",
    "load_model",
    "match_vocabulary",
    "model_from_tensors",
]
