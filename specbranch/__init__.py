"""SpecBranch: lossless speculative decoding in which draft and target run at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .engine import Engine, Event, GenerationResult
    from .models import CausalLM, load_model
    from .models.layer_skip import layer_skip
    from .pair import demo_pair, demo_predictor
    from .predictor import HRad
    from .sampling_params import SamplingParams
    from .stats import Stats
    from .tokenizer import Tokenizer, load_tokenizer

_HOMES = {
    "CausalLM": "models",
    "Engine": "engine",
    "Event": "engine",
    "GenerationResult": "engine",
    "HRad": "predictor",
    "SamplingParams": "sampling_params",
    "Stats": "stats",
    "Tokenizer": "tokenizer",
    "demo_pair": "pair",
    "demo_predictor": "pair",
    "layer_skip": "models.layer_skip",
    "load_model": "models",
    "load_tokenizer": "tokenizer",
}

__all__ = [
    "CausalLM",
    "Engine",
    "Event",
    "GenerationResult",
    "HRad",
    "SamplingParams",
    "Stats",
    "Tokenizer",
    "__version__",
    "demo_pair",
    "demo_predictor",
    "layer_skip",
    "load_model",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: `specbranch --help` must not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'specbranch' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
