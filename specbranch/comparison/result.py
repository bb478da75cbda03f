"""What a comparison found: methods, their runs, differences; written and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..sampling_params import SamplingParams
from .equality import Difference
from .methods import BASELINE, Method
from .metrics import Metrics, metrics, speed_ratios
from .runs import Run


@dataclass
class Comparison:
    """Methods, their runs, and how far their outputs are ``ar``'s.

    ``methods``: as planned, with all settings that concern them; ``prompt_tokens``: length of each
    prompt; ``about``: what was run, where, on what; plain values.
    """

    methods: list[Method]
    prompt_tokens: list[int]
    params: SamplingParams
    repeat: int
    runs: list[Run]
    differences: list[Difference]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def baseline(self) -> Method:
        """The method that speedups are over."""
        return next(method for method in self.methods if method.policy == BASELINE)

    @property
    def wrong(self) -> list[Difference]:
        """Differences from ``ar`` that the target's own ties do not explain."""
        return [found for found in self.differences if not found.is_tie]

    def must_equal(self, method: Method) -> bool:
        """Whether the method's tokens have to be ``ar``'s, and not only its distribution."""
        return must_equal(method, self.params)

    def runs_of(self, method: Method, prompt: int | None = None) -> list[Run]:
        """Of all prompts or of one."""
        return [
            run for run in self.runs if run.method == method.name and prompt in (None, run.prompt)
        ]

    def metrics(self, method: Method, prompt: int | None = None) -> Metrics:
        """Over all prompts or over one."""
        return metrics(self.runs_of(method, prompt))

    def speedups(self, method: Method) -> dict[int, float]:
        """Per prompt: tokens/s over ``ar``'s, prompt processing included."""
        return speed_ratios(self.runs_of(method), self.runs_of(self.baseline))

    def table(self) -> str:
        """Text for a terminal: one table, what its columns mean, and what was run."""
        from .table import as_text

        return as_text(self)

    def write(self, folder: str | Path) -> list[Path]:
        """Write ``bench.json``, ``bench.csv``, ``bench.md`` and, with matplotlib, the pictures.

        Returns:
            The files written; ``plots.can_draw`` says whether pictures are among them.
        """
        from .files import write

        return write(self, Path(folder))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "kind": "comparison",
            **self.about,
            "params": asdict(self.params),
            "repeat": self.repeat,
            "prompt_tokens": self.prompt_tokens,
            "methods": [
                asdict(method) | {"metrics": asdict(self.metrics(method))}
                for method in self.methods
            ],
            "differences": [found.to_dict() for found in self.differences],
            "runs": [run.to_dict() for run in self.runs],
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Comparison:
        """What ``to_dict`` gave; its pictures can be drawn again."""
        rest = dict(found)
        own = {key: rest.pop(key) for key in ("params", "repeat", "prompt_tokens")}
        methods = [
            Method(**{key: val for key, val in method.items() if key != "metrics"})
            for method in rest.pop("methods")
        ]
        own["params"]["stop"] = tuple(own["params"]["stop"])
        return cls(
            methods=methods,
            prompt_tokens=own["prompt_tokens"],
            params=SamplingParams(**own["params"]),
            repeat=own["repeat"],
            differences=[Difference(**each) for each in rest.pop("differences")],
            runs=[Run.from_dict(each) for each in rest.pop("runs")],
            about={key: val for key, val in rest.items() if key != "kind"},
        )

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Read a ``bench.json``."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


def must_equal(method: Method, params: SamplingParams) -> bool:
    """Whether the method's tokens have to be ``ar``'s, and not only its distribution."""
    return params.temperature == 0 or method.is_coupled
