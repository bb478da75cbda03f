"""One request of one method, timed; and the rounds behind it.

What is timed is the whole request, prompt included, from token ids to token ids: no text is encoded
or decoded. Tokens behind an end-of-sequence token or past ``max_new_tokens`` are not counted, for
any method; a round that they would have belonged to is cut where the output ends.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch

from ..engine import Engine, Event
from ..models.protocol import CausalLM
from ..predictor import Predictor
from ..sampling_params import SamplingParams
from ..timeline import Round, Span, Timeline
from .methods import CONCERNS, Method
from .runs import Arrival, Run


class Stopwatch:
    """Seconds between ``start`` and ``stop``; a device has finished its work at both."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.started = 0.0

    def start(self) -> None:
        """From now on."""
        self._synchronize()
        self.started = time.perf_counter()

    def lap(self) -> float:
        """Until now, whatever the device still does."""
        return time.perf_counter() - self.started

    def stop(self) -> float:
        """Until now."""
        self._synchronize()
        return self.lap()

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class Contestant:
    """A method and the engine that runs it.

    Raises:
        ValueError: the engine refuses the method's settings; the message names both.
    """

    def __init__(
        self,
        method: Method,
        target: CausalLM,
        draft: CausalLM | None,
        predictor: Predictor | None,
        threads: int | None,
    ) -> None:
        self.method = method
        self._build: dict[str, Any] = {
            "policy": method.policy,
            "predictor": predictor if method.hrad else None,
            "threads": threads,
            **_settings(method, predictor),
        }
        self.target = target
        self._models = (target, draft if method.needs_draft else None)
        self._watch = Stopwatch(target.device)
        self._engine = self._new_engine()
        self._observer = self._engine  # what tells of rounds: the same, unless they are a device's
        if self._engine.rounds == "device":
            self._observer = self._new_engine(rounds="host")

    @property
    def settings(self) -> dict[str, Any]:
        """Those that concern it, defaults included."""
        known = self._engine.settings
        return {key: getattr(known, key) for key in CONCERNS[self.method.policy]}

    @property
    def observes_apart(self) -> bool:
        """Whether outcomes of rounds need a request of their own: a device's rounds tell none."""
        return self._observer is not self._engine

    def run(self, prompt: Sequence[int], params: SamplingParams, *, idx: int, repeat: int) -> Run:
        """Continue ``prompt``, the one with number ``idx``, and time it.

        Raises:
            ValueError, TypeError: from the engine.
        """
        timeline = None if self.observes_apart else Timeline()
        self._watch.start()
        events, arrivals = self._follow(self._engine, prompt, params, timeline)
        seconds, result = self._watch.stop(), self._engine.last_result
        assert result is not None, "the request has ended"
        spans, rounds = [], []
        if timeline is None:
            rounds = self._observe(prompt, params) if repeat == 0 else []
        else:
            rounds = cut_rounds(timeline.rounds, events)
            if idx == repeat == 0 and self._lanes_are_seen:
                spans = _since(self._watch.started, timeline)
        return Run(
            method=self.method.name,
            prompt=idx,
            repeat=repeat,
            tokens=result.tokens,
            seconds=seconds,
            prefill_seconds=result.stats.prefill_seconds,
            arrivals=arrivals,
            origins=dict(Counter(origin for event in events for origin in event.origins)),
            counters={key: float(val) for key, val in result.stats.__dict__.items()},
            rounds=rounds,
            spans=spans,
        )

    @property
    def _lanes_are_seen(self) -> bool:
        """On a device the host's clock would tell of launches, not of the work."""
        return all(model is None or model.device.type == "cpu" for model in self._models)

    def _observe(self, prompt: Sequence[int], params: SamplingParams) -> list[Round]:
        """The rounds of the same request once more, directed by the host, not timed."""
        timeline = Timeline()
        events, _ = self._follow(self._observer, prompt, params, timeline)
        return cut_rounds(timeline.rounds, events)

    def _follow(
        self,
        engine: Engine,
        prompt: Sequence[int],
        params: SamplingParams,
        timeline: Timeline | None,
    ) -> tuple[list[Event], list[Arrival]]:
        """Every round's output that counts, and when it came."""
        events, arrivals = [], []
        with closing(engine.events(list(prompt), params, timeline=timeline)) as stream:
            for event in stream:
                if event.tokens:
                    arrivals.append(Arrival(self._watch.lap(), len(event.tokens)))
                    events.append(event)
        return events, arrivals

    def _new_engine(self, **more: Any) -> Engine:
        target, draft = self._models
        try:
            return Engine(target, draft, **self._build, **more)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.method.name!r}: {error}") from error


def _settings(method: Method, predictor: Predictor | None) -> dict[str, Any]:
    """The method's; with a predictor gamma is the one it was trained for, if none was given."""
    gamma = getattr(predictor, "gamma", None) if method.hrad else None
    return method.settings if gamma is None else {"gamma": gamma} | method.settings


def _since(started: float, timeline: Timeline) -> list[Span]:
    return [
        span._replace(start=span.start - started, end=span.end - started) for span in timeline.spans
    ]


def cut_rounds(rounds: Sequence[Round], events: Sequence[Event]) -> list[Round]:
    """Rounds without what lies behind the end of the output; as many as there are events."""
    return [
        _cut(outcome, len(event.tokens), event.origins)
        for outcome, event in zip(rounds, events, strict=False)
    ]


def _cut(outcome: Round, kept: int, origins: Sequence[str]) -> Round:
    if kept >= outcome.num_committed:
        return outcome
    return outcome._replace(
        num_drafted=min(outcome.num_drafted, kept),
        num_accepted=min(outcome.num_accepted, kept),
        num_committed=kept,
        last=origins[-1],
    )
