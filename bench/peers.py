"""Who else could do what an op does: PyTorch, PyTorch compiled, FlashInfer where it is installed.

FlashInfer works on probabilities, so its calls start with its own softmax; results have the
meaning of ours where it has such an op (``chain_speculative_sampling``; renormalised probabilities
instead of a cutoff), and there is no entry where it has none.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from kernel_cases import Case, Inputs

NAMES = ("torch", "compiled", "flashinfer")

Peer = Callable[[Inputs], object]


class Absent(Exception):
    """Why a peer is not there; the message goes into the result."""


def peer(name: str, case: Case) -> Peer:
    """The call of one peer for a case.

    Raises:
        Absent: there is none, saying why.
    """
    if name == "torch":
        return case.plain
    if name == "compiled":
        return _compiled(case.plain)
    if case.op not in FLASHINFER:
        raise Absent("no such op in FlashInfer")
    _flashinfer()  # raises where it is not installed
    return FLASHINFER[case.op]


@functools.cache
def _compiled(plain: Peer) -> Peer:
    """As users get it: sizes that change are made symbolic after the second one."""
    compiled: Peer = torch.compile(plain)
    return compiled


@functools.cache
def _flashinfer() -> Any:
    try:
        return importlib.import_module("flashinfer")
    except ImportError as error:
        raise Absent(f"not installed: {error}") from None


# ---------------------------------------------------------------------------- FlashInfer's calls
def _softmax(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    rows = logits.reshape(-1, logits.shape[-1])
    heat = temperature.repeat_interleave(len(rows) // len(temperature))
    probs: torch.Tensor = _flashinfer().sampling.softmax(rows, heat)
    return probs.view(logits.shape)


def _verify(x: Inputs) -> object:
    if "draft" not in x:
        raise Absent("FlashInfer has no coupled verification")
    target, draft = (_softmax(x[name], x["temperature"]) for name in ("target", "draft"))
    return _flashinfer().sampling.chain_speculative_sampling(draft, x["chain"], target)


def _sample(x: Inputs) -> object:
    probs = _softmax(x["logits"], x["temperature"])
    return _flashinfer().sampling.sampling_from_probs(probs)


def _cutoff(x: Inputs) -> object:
    sampling = _flashinfer().sampling
    probs = _softmax(x["logits"], x["temperature"])
    if "kept" in x:
        probs = sampling.top_k_renorm_probs(probs, x["kept"])
    return sampling.top_p_renorm_probs(probs, x["top_p"])


def _attention(x: Inputs) -> object:
    if len(x["q"]) > 1:
        raise Absent("its batched form takes a paged or ragged cache")
    flashinfer = _flashinfer()
    if "packed" not in x:
        x["packed"] = flashinfer.packbits(x["mask"].view(-1), bitorder="little")
    return flashinfer.single_prefill_with_kv_cache(
        x["q"][0],
        x["cache"][0, 0],
        x["cache"][1, 0],
        packed_custom_mask=x["packed"],
        kv_layout="HND",
    )


def _norm(x: Inputs) -> object:
    return _flashinfer().fused_add_rmsnorm(x["delta"], x["x"], x["weight"], 1e-5)


def _silu(x: Inputs) -> object:
    return _flashinfer().silu_and_mul(x["gate_up"])


FLASHINFER: dict[str, Peer] = {
    "verify": _verify,
    "sample": _sample,
    "logit_cutoff": _cutoff,
    "tree_attention": _attention,
    "add_rms_norm": _norm,
    "silu_mul": _silu,
}
