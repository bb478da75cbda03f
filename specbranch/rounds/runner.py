"""Runners launch the rounds of a program and read their reports; here the one for a CPU."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ..models.llama import LlamaState
from ..sampling_params import SamplingParams
from .parcel import run_in_order
from .program import RoundProgram


class Runner(ABC):
    """Launches the rounds of a program, one request after the other.

    ``ahead``: rounds launched before the host waits for one.
    """

    ahead = 1

    def __init__(self, program: RoundProgram) -> None:
        self.program = program
        self._steps = program.steps()

    @property
    def has_cutoff(self) -> bool:
        """Whether it is for requests that cut logits: those take further launches."""
        return self.program.params.has_cutoff

    def take_states(self) -> tuple[LlamaState, LlamaState | None]:
        """The program's states, emptied for a new request."""
        self.drain()
        target, draft = self.program.target, self.program.draft
        for state in (target, draft):
            if state is not None:
                state.rollback(0)
        return target, draft

    def begin(self, tokens: list[int], params: SamplingParams) -> None:
        """Start a request from ``tokens``, all but the last in the caches; rounds count from 0."""
        self.program.load(tokens, params)

    @abstractmethod
    def drain(self) -> None:
        """Wait for rounds that were launched and that nobody will read."""

    @abstractmethod
    def launch(self) -> None:
        """One more round."""

    @abstractmethod
    def report(self, number: int) -> list[int]:
        """What round ``number`` since ``begin`` reported, once it has."""

    @abstractmethod
    def target_seconds(self) -> float:
        """How long the target's side has worked since ``begin``, as far as the host knows."""


class EagerRunner(Runner):
    """Step by step on a CPU, where each is done when the call returns.

    The two sides may be kept apart there too (models whose ``device`` differs, ``cpu:1``), which is
    how tests run what two GPUs would.
    """

    def drain(self) -> None:
        """Nothing runs any more when ``launch`` has returned."""

    def launch(self) -> None:
        """One more round."""
        run_in_order(self._steps)

    def report(self, number: int) -> list[int]:
        """What round ``number`` reported."""
        rows = self.program.state.report
        report: list[int] = rows[number % len(rows), 0].tolist()
        return report

    def target_seconds(self) -> float:
        """How long the target's side has worked."""
        return int(self.program.clock[0]) / 1e9
