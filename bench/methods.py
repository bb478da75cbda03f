"""The contestants of ``e2e.py``: one call each, token ids in, token ids and seconds out.

All of them get the same prompt ids, the same weights in the same dtype on the same device, the same
number of threads and the same end-of-sequence ids; none decodes text. What is timed is the whole
request, prompt included, until the device has nothing left to do.
"""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from inflate import Inflation, our_model, transformers_model

from specbranch import Engine, SamplingParams, load_model
from specbranch.comparison.measure import Stopwatch
from specbranch.comparison.methods import BASELINE, CONCERNS
from specbranch.models import LlamaModel

# Counters that add up over prompts; every metric of a table is made from their sums.
COUNTERS = (
    "seconds", "prefill_seconds", "time_to_first_token", "target_seconds", "host_seconds",
    "rounds", "target_forwards", "draft_forwards",
    "committed", "drafted", "accepted", "accepted_chain", "rejections", "rolled_back", "pruned",
    "sibling_tokens", "branch_points", "branch_hits",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One request of one method."""

    tokens: list[int]
    seconds: float
    counters: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """One model's weights for a device: a checkpoint directory's, as they are or inflated."""

    folder: Path
    device: str
    dtype: str
    shape: str | None = None  # a name of inflate.SHAPES

    def inflation(self) -> Inflation:
        """The inflated tensors."""
        assert self.shape is not None, "the caller has looked"
        dtype = getattr(torch, self.dtype)
        return Inflation(self.folder, self.shape, device=self.device, dtype=dtype)

    def ours(self) -> LlamaModel:
        """In this library."""
        if self.shape is not None:
            return our_model(self.inflation())
        return load_model(self.folder, dtype=self.dtype, device=self.device)

    def theirs(self) -> Any:
        """In transformers."""
        if self.shape is not None:
            return transformers_model(self.inflation())
        from transformers import AutoModelForCausalLM

        dtype = getattr(torch, self.dtype)
        model: Any = AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype)
        return model.to(self.device).eval()


class Method(Protocol):
    """One way to continue a prompt."""

    name: str
    is_ours: bool

    def __call__(self, prompt: Sequence[int], params: SamplingParams) -> Run:
        """Continue ``prompt`` and time it."""
        ...


class OurMethod:
    """A policy of this library."""

    is_ours = True

    def __init__(self, name: str, engine: Engine) -> None:
        self.name, self._engine = name, engine
        self._watch = Stopwatch(engine.target.device)

    def __call__(self, prompt: Sequence[int], params: SamplingParams) -> Run:
        """Continue ``prompt`` and time it."""
        self._watch.start()
        result = self._engine.generate(list(prompt), params)
        seconds = self._watch.stop()
        stats = result.stats.to_dict()
        return Run(result.tokens, seconds, {name: stats[name] for name in COUNTERS})


class TransformersMethod:
    """``transformers``' ``generate``, its defaults but for what ``more`` says (an assistant)."""

    is_ours = False

    def __init__(self, name: str, target: Any, threads: int, **more: Any) -> None:
        self.name, self._target, self._threads = name, target, threads
        self._watch, self._more = Stopwatch(target.device), more

    def __call__(self, prompt: Sequence[int], params: SamplingParams) -> Run:
        """Continue ``prompt`` and time it."""
        ids = torch.tensor([list(prompt)], device=self._target.device)
        sampling: dict[str, Any] = {"do_sample": False}
        if params.temperature > 0:
            sampling = {"do_sample": True, "temperature": params.temperature, "top_k": 0}
            sampling["top_p"] = 1.0
        torch.manual_seed(params.seed)
        torch.set_num_threads(self._threads)
        self._watch.start()
        with torch.inference_mode():
            out = self._target.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=params.max_new_tokens,
                use_cache=True,
                pad_token_id=0,
                **sampling,
                **self._more,
            )
        seconds = self._watch.stop()
        return Run(out[0, ids.shape[1] :].tolist(), seconds)


def our_methods(args: Namespace, target: LlamaModel, draft: LlamaModel) -> list[Method]:
    """Every policy asked for, with every combination of the settings that concern it."""
    methods: list[Method] = []
    for policy in args.policies:
        for settings in _combinations(policy, args):
            varied = {key: val for key, val in settings.items() if len(getattr(args, key)) > 1}
            name = " ".join([policy, *(f"{key}={value}" for key, value in varied.items())])
            engine = Engine(target, draft, policy=policy, threads=args.threads, **settings)
            methods.append(OurMethod(name, engine))
    return methods


def _combinations(policy: str, args: Namespace) -> list[dict[str, Any]]:
    concerns = () if policy == BASELINE else CONCERNS[policy]
    keys = [key for key in concerns if getattr(args, key)]
    values = itertools.product(*(getattr(args, key) for key in keys))
    return [dict(zip(keys, combination, strict=True)) for combination in values]


def peer_methods(args: Namespace, target_weights: Weights, draft_weights: Weights) -> list[Method]:
    """The transformers methods asked for, over the same weights."""
    if not args.peers:
        return []
    target = target_weights.theirs()
    draft = draft_weights.theirs() if "hf-assisted" in args.peers else None
    methods: list[Method] = []
    for name in args.peers:
        for threads in args.peer_threads or [args.threads]:
            suffix = "" if len(args.peer_threads) < 2 else f" threads={threads}"
            more = {"assistant_model": draft} if name == "hf-assisted" else {}
            methods.append(TransformersMethod(name + suffix, target, threads, **more))
    return methods
