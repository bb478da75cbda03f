"""One request: what it has come to so far, and its result."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from .rounds import Runner
from .session import Committed, Session
from .stats import Stats
from .text import TextStream


@dataclass(frozen=True)
class Event:
    """What one round added to the output; ``text`` lags behind ``tokens`` by what is undecided."""

    tokens: list[int]
    origins: list[str]
    text: str


@dataclass(frozen=True)
class GenerationResult:
    """A finished request.

    ``tokens`` are the new ones, an end-of-sequence token or the tokens of a stop string included;
    ``text`` is None without a tokenizer and ends before a stop string. ``origins`` says of each
    token where it came from: chain, branch, recovered, bonus or plain. ``finish_reason`` is
    length, eos, stop or cancelled.
    """

    text: str | None
    tokens: list[int]
    origins: list[str]
    stats: Stats
    finish_reason: str


@dataclass
class Request:
    """A request while it is decoded."""

    session: Session
    stream: TextStream
    eos: frozenset[int]
    has_text: bool
    started: float
    runner: Runner | None
    tokens: list[int] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    finish_reason: str = ""
    cancelled: threading.Event = field(default_factory=threading.Event)
    result: GenerationResult | None = None

    def accept(self, committed: Committed) -> Event:
        """Take a round's tokens up to the first that ends the request."""
        first = len(self.tokens)
        text = ""
        for token, origin in zip(committed.tokens, committed.origins, strict=True):
            self.tokens.append(token)
            self.origins.append(origin)
            ends = token in self.eos
            text += "" if ends else self.stream.push(token)
            self.finish_reason = self._reason(ends)
            if self.finish_reason:
                break
        if not first:
            self.session.stats.time_to_first_token = time.perf_counter() - self.started
        return Event(self.tokens[first:], self.origins[first:], text)

    def _reason(self, at_eos: bool) -> str:
        if at_eos:
            return "eos"
        if self.stream.stopped:
            return "stop"
        enough = len(self.tokens) >= self.session.params.max_new_tokens
        return "length" if enough else ""

    def rest(self) -> list[Event]:
        """At the end: the text that was held back, if any."""
        text = self.stream.finish()
        return [Event([], [], text)] if text else []

    def finish(self) -> GenerationResult:
        """Fill in the statistics that are known only at the end."""
        stats = self.session.stats
        stats.new_tokens = len(self.tokens)
        stats.seconds = time.perf_counter() - self.started
        text = self.stream.text if self.has_text else None
        self.result = GenerationResult(text, self.tokens, self.origins, stats, self.finish_reason)
        return self.result
