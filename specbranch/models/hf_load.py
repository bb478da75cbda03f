"""Checkpoint directories by way of transformers: from files to a model, or one clear error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .. import ops
from .hf import HFModel, one_line, require_transformers
from .hf_limits import why_not

logger = logging.getLogger(__name__)


def load_hf_model(
    folder: Path, *, dtype: torch.dtype, device: torch.device, backend: ops.Backend | None = None
) -> HFModel:
    """Load a checkpoint; code that comes with it is never run, pickles are never opened.

    Args:
        folder: holds config.json and safetensors.
        dtype, device: of the weights.
        backend: which of our kernels to use; None: those of the device.

    Raises:
        ValueError: naming the file or architecture, and what keeps it from being served.
        ModuleNotFoundError: transformers is not installed, or too old.
    """
    require_transformers()
    config = _config(folder)
    reason = why_not(config)
    if reason is not None:
        raise ValueError(f"{folder / 'config.json'}: {_named(config)} cannot be served: {reason}")
    model = _weights(folder, config, dtype).to(device)
    return HFModel(model, backend=backend)


def _named(config: Any) -> str:
    return str((config.architectures or [config.model_type])[0])


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of many kinds
        raise ValueError(
            f"{folder / 'config.json'} is not a config that transformers knows: {one_line(error)}"
        ) from error


def _weights(folder: Path, config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with _quiet():
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                output_loading_info=True,
            )
    except Exception as error:  # of many kinds
        raise ValueError(
            f"{folder}: transformers cannot make {_named(config)} of config.json and weights: "
            f"{one_line(error)}"
        ) from error
    _check_class(folder, config, model)
    _check_found(folder, found)
    return model


def _check_class(folder: Path, config: Any, model: Any) -> None:
    """A config whose model is another than the one it names is of something else."""
    if _named(config) != type(model).__name__:
        raise ValueError(
            f"{folder / 'config.json'}: architecture was {_named(config)}; as a causal language "
            f"model of type {config.model_type} it must be {type(model).__name__}"
        )


def _check_found(folder: Path, found: dict[str, Any]) -> None:
    """transformers fills in random numbers for what is missing; we do not."""
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        names = sorted(map(str, found.get(kind) or ()))
        if names:
            what = kind.replace("_", " ").replace("keys", "tensors").replace("msgs", "messages")
            raise ValueError(f"{folder}: {len(names)} {what}, the first is {names[0][:200]}")
    left = sorted(map(str, found.get("unexpected_keys") or ()))
    if left:
        logger.warning("%s: %d tensors are not used, the first is %s", folder, len(left), left[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and load reports: what must be said is said here."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
