"""Who takes part in ``versus.py``, each behind the same call; who cannot says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from methods import Method as Peer
from methods import Run as PeerRun
from methods import TransformersMethod
from versus_models import Draft, Subject

from specbranch import SamplingParams
from specbranch.comparison.measure import Contestant, Stopwatch
from specbranch.comparison.methods import Method, parse_method
from specbranch.comparison.run import Runs, warm_up
from specbranch.comparison.runs import Run
from specbranch.models.hf import one_line

GENERATE = "transformers generate"
LOOKUP = "transformers prompt lookup"
ASSISTED = "transformers assisted"
FLASHSPEC = "flashspec"


class Absent(Exception):
    """Why a method cannot run here."""


@dataclass(frozen=True)
class Entry:
    """One row of the table."""

    method: str
    draft: str  # "" for a method that needs none
    is_ours: bool
    contestant: Runs

    @property
    def name(self) -> str:
        """Of its runs."""
        return self.contestant.method.name


class PeerContestant:
    """Another library's method where a ``Contestant`` is expected."""

    def __init__(self, name: str, call: Peer) -> None:
        self.method, self._call = Method(name, "peer"), call

    def run(self, prompt: Sequence[int], params: SamplingParams, *, idx: int, repeat: int) -> Run:
        """Continue ``prompt`` and time it; rounds and their counters are not known."""
        found = self._call(prompt, params)
        return Run(
            method=self.method.name, prompt=idx, repeat=repeat, tokens=found.tokens,
            seconds=found.seconds, prefill_seconds=0.0, arrivals=[], origins={}, counters={},
        )  # fmt: skip


class FlashSpecMethod:
    """The PyPI package ``flashspec`` over transformers' models, with its own defaults, greedy.

    Raises:
        Absent: it is not installed, or refuses the models.
    """

    is_ours = False
    name = FLASHSPEC

    def __init__(self, target: Any, draft: Any, threads: int) -> None:
        self._device, self._threads = target.device, threads
        self._watch = Stopwatch(target.device)
        eos = tuple(target.generation_config.eos_token_id or ())
        try:
            import flashspec
            from flashspec.engine import HuggingFaceDrafter, TargetModel

            config = flashspec.FlashSpecConfig(
                device=str(target.device),
                dtype="float32",
                eos_token_ids=eos,
                sampling=flashspec.SamplingConfig(temperature=0.0),
            )
            drafter = HuggingFaceDrafter(
                "draft", target.device, torch.float32, temperature=0.0, model=draft
            )
            verifier = TargetModel("target", target.device, torch.float32, model=target)
            self._engine = flashspec.SpeculativeEngine(config, [drafter], verifier)
        except ImportError as error:
            raise Absent(f"not installed: {one_line(error)}") from error
        except Exception as error:  # whatever it stumbles over
            raise Absent(one_line(error)) from error

    def __call__(self, prompt: Sequence[int], params: SamplingParams) -> PeerRun:
        """Continue ``prompt`` and time it."""
        ids = torch.tensor([list(prompt)], device=self._device)
        torch.set_num_threads(self._threads)
        self._watch.start()
        out = self._engine.generate(ids, max_new_tokens=params.max_new_tokens)
        seconds = self._watch.stop()
        return PeerRun(out.output_ids[0, : out.n_tokens_generated].tolist(), seconds)


def entries(
    subject: Subject, policies: Sequence[str], lookup_tokens: int, threads: int
) -> tuple[list[Entry], list[dict[str, str]]]:
    """Everybody who can take part, and who cannot, with reasons.

    Raises:
        ValueError: no such policy, or settings that it refuses.
    """
    found = list(_ours(subject, policies, threads))
    made: list[tuple[str, str, Callable[[], Peer]]] = []
    theirs = subject.theirs

    def transformers(name: str, **more: Any) -> Callable[[], Peer]:
        return lambda: TransformersMethod(name, theirs, threads, **more)

    made.append((GENERATE, "", transformers(GENERATE)))
    made.append((LOOKUP, "", transformers(LOOKUP, prompt_lookup_num_tokens=lookup_tokens)))
    for draft in subject.drafts:
        assisted = transformers(ASSISTED, assistant_model=draft.theirs)
        made.append((ASSISTED, draft.name, assisted))
    for draft in subject.drafts:
        made.append((FLASHSPEC, draft.name, _flashspec(theirs, draft, threads)))
    absent = []
    for method, drafted_by, make in made:
        try:
            peer = PeerContestant(_name(method, drafted_by), make())
        except Absent as reason:
            absent.append({"method": method, "draft": drafted_by, "reason": str(reason)})
            continue
        found.append(Entry(method, drafted_by, False, peer))
    return found, absent


def _flashspec(theirs: Any, draft: Draft, threads: int) -> Callable[[], Peer]:
    return lambda: FlashSpecMethod(theirs, draft.theirs, threads)


def _ours(subject: Subject, policies: Sequence[str], threads: int) -> list[Entry]:
    """Every policy, once for each draft if it needs one."""
    found = []
    for text in policies:
        method = parse_method(text)
        for draft in subject.drafts if method.needs_draft else (None,):
            drafted_by = "" if draft is None else draft.name
            named = replace(method, name=_name(text, drafted_by))
            model = None if draft is None else draft.ours
            contestant = Contestant(named, subject.ours, model, None, threads)
            found.append(Entry(text, drafted_by, True, contestant))
    return found


def _name(method: str, draft: str) -> str:
    return f"{method} [{draft}]" if draft else method


def warmed_up(
    everybody: Sequence[Entry], prompt: Sequence[int], params: SamplingParams
) -> tuple[list[Entry], list[dict[str, str]]]:
    """Those whose first request succeeds, and why others' did not; ours must."""
    kept, absent = [], []
    for entry in everybody:
        try:
            warm_up(entry.contestant, prompt, params)
        except Exception as error:  # whatever another library stumbles over
            if entry.is_ours:
                raise
            absent.append({"method": entry.method, "draft": entry.draft, "reason": one_line(error)})
            continue
        kept.append(entry)
    return kept, absent
