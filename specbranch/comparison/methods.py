"""What is compared: policies, each with the settings that concern it. Imports no torch.

A method is typed ``policy`` or ``policy:setting=value,...`` and keeps the name that was typed;
``specbranch+hrad`` is ``specbranch`` with an H-RAD predictor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..sampling_params import check_float, check_int

#: The settings (see ``session.Settings``) that each policy looks at.
CONCERNS: dict[str, tuple[str, ...]] = {
    "ar": ("verify",),
    "sps": ("gamma", "verify"),
    "specbranch": ("gamma", "k_max", "epsilon", "draft_stage", "verify"),
    "pearl": ("gamma", "verify"),
    "adaedl": ("gamma", "epsilon", "verify"),
    "fanout": ("gamma", "k_max", "epsilon", "draft_stage", "verify"),
    "lookahead": ("gamma", "k_max", "window", "verify"),
    "ngram": ("gamma", "max_ngram", "verify"),
    "auto": ("gamma", "k_max", "epsilon"),
}
WITHOUT_DRAFT = ("ar", "lookahead", "ngram")
DEFAULT_METHODS = (
    "ar", "sps", "specbranch", "pearl", "adaedl", "fanout", "lookahead", "ngram",
)  # fmt: skip
BASELINE = "ar"
HRAD = "specbranch+hrad"
CHOICES = {"draft_stage": ("serial", "overlap"), "verify": ("rejection", "coupled")}


@dataclass(frozen=True)
class Method:
    """One contestant: a policy and the settings that differ from the engine's defaults.

    ``hrad``: whether it asks the H-RAD predictor.
    """

    name: str
    policy: str
    settings: dict[str, Any] = field(default_factory=dict)
    hrad: bool = False

    @property
    def needs_draft(self) -> bool:
        """Whether a second model guesses for it."""
        return self.policy not in WITHOUT_DRAFT

    @property
    def is_coupled(self) -> bool:
        """Whether its output is that of ``ar`` with the same seed, at any temperature."""
        return self.policy == "auto" or self.settings.get("verify") == "coupled"


def parse_method(text: str) -> Method:
    """``policy`` or ``policy:setting=value,setting=value``.

    Raises:
        ValueError: no such policy or setting, or a value that it cannot have; all are named.
    """
    head, colon, rest = text.partition(":")
    hrad = head == HRAD
    policy = "specbranch" if hrad else head
    if policy not in CONCERNS:
        raise ValueError(
            f"{text!r} is no method; it must begin with one of {', '.join((*CONCERNS, HRAD))}"
        )
    settings: dict[str, Any] = {}
    for part in rest.split(",") if colon else ():
        key, value = _setting(text, policy, part)
        if key in settings:
            raise ValueError(f"{text!r} sets {key} twice")
        settings[key] = value
    return Method(text, policy, settings, hrad)


def _setting(text: str, policy: str, part: str) -> tuple[str, Any]:
    """One ``setting=value``, as the engine takes it."""
    name, equals, value = part.partition("=")
    key = name.strip().replace("-", "_")
    if not equals or key not in CONCERNS[policy]:
        raise ValueError(
            f"{text!r} has {part!r}; it must be SETTING=VALUE, for {policy} with a setting of "
            f"{', '.join(CONCERNS[policy])}"
        )
    try:
        return key, check_setting(key, _number(key, value.strip()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"in {text!r} {error}") from error


def _number(key: str, value: str) -> Any:
    if key in CHOICES:
        return value
    kind = float if key == "epsilon" else int
    try:
        return kind(value)
    except ValueError:
        return value  # check_setting says what it must be


def check_setting(key: str, value: Any) -> Any:
    """``value``, if a policy may have it.

    Raises:
        TypeError, ValueError: naming the setting, what it was and what it must be.
    """
    if key in CHOICES:
        if value not in CHOICES[key]:
            raise ValueError(f"{key} was {value!r}; it must be {' or '.join(CHOICES[key])}")
    elif key == "epsilon":
        check_float(key, value, 0.0, 1.0)
    else:
        check_int(key, value, 1, 64)
    return value


def plan_methods(
    wanted: Sequence[str], common: Mapping[str, Any] | None = None, *, hrad: bool = False
) -> list[Method]:
    """The methods to run: those wanted, ``ar`` before them if it is not among them.

    Args:
        wanted: see ``parse_method``.
        common: settings of every method that they concern and that has none of its own.
        hrad: there is a predictor; ``specbranch+hrad`` is added if it is not among the wanted.

    Raises:
        TypeError, ValueError: naming what is wrong with which method or setting.
    """
    methods = [parse_method(text) for text in wanted]
    if all(method.policy != BASELINE for method in methods):
        methods.insert(0, Method(BASELINE, BASELINE))
    if hrad and not any(method.hrad for method in methods):
        methods.append(parse_method(HRAD))
    if not hrad and any(method.hrad for method in methods):
        raise ValueError(f"{HRAD} needs a predictor, and none was given")
    twice = [name for name, count in Counter(each.name for each in methods).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} was given twice")
    common = dict(common or {})
    for key, value in common.items():
        check_setting(key, value)
        if not any(key in CONCERNS[method.policy] for method in methods):
            raise ValueError(f"{key} was {value!r}; none of the methods looks at it")
    return [_with_common(method, common) for method in methods]


def _with_common(method: Method, common: Mapping[str, Any]) -> Method:
    known = CONCERNS[method.policy]
    settings = {key: val for key, val in common.items() if key in known} | method.settings
    return Method(method.name, method.policy, settings, method.hrad)
