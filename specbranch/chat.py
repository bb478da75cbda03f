"""Messages to a prompt: the chat template that comes with a checkpoint, rendered in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from types import ModuleType

    from jinja2 import Template

Message = Mapping[str, Any]


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as plain dicts.

    Raises:
        TypeError, ValueError: naming the message, what it was and what it must be.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise TypeError(
            f"messages was {type(messages).__name__}; it must be a list of dicts with role and "
            "content"
        )
    if not messages:
        raise ValueError("messages was empty; it must have at least one message")
    return [_checked(idx, message) for idx, message in enumerate(messages)]


def _checked(idx: int, message: Message) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise TypeError(
            f"messages[{idx}] was {message!r:.80}; it must be a dict with role and content"
        )
    for key in ("role", "content"):
        if key not in message:
            raise ValueError(f"messages[{idx}] had no {key}; it must have role and content")
        if not isinstance(message[key], str):
            raise TypeError(f"messages[{idx}] had {key} {message[key]!r:.80}; it must be a string")
    if not message["role"]:
        raise ValueError(f"messages[{idx}] had an empty role; it must be a name like user")
    return dict(message)


class ChatTemplate:
    """A Jinja template as checkpoints bring them; it is not trusted.

    Args:
        source: the template.
        special_tokens: variables of the template, such as ``bos_token``.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source, self._special_tokens = source, dict(special_tokens)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The prompt's text.

        Raises:
            TypeError, ValueError: the messages are none, or the template refuses them.
            ModuleNotFoundError: the package ``jinja2`` is not installed.
        """
        checked = check_messages(messages)
        template = self._template
        try:
            return template.render(
                messages=checked,
                add_generation_prompt=add_generation_prompt,
                tools=None,  # defined, since templates ask whether they are none
                documents=None,
                **self._special_tokens,
            )
        except Exception as error:  # a template may fail in any way that Python can
            raise ValueError(f"messages could not be rendered by the chat template: {error}") from (
                error
            )

    @cached_property
    def _template(self) -> Template:
        jinja2 = _package()
        try:
            template: Template = _environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise ValueError(f"chat_template is not a Jinja template: {error}") from error
        return template


def _package() -> ModuleType:
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "chat templates need the package jinja2: pip install jinja2"
        ) from error
    return jinja2


def _environment() -> Any:
    """What templates may count on, by the habit that transformers has set."""
    from jinja2 import ext, nodes, parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """``{% generation %}`` marks what is trained on; here it is just its content."""

        tags = {"generation"}  # noqa: RUF012  # the base class declares it so

        def parse(self, stream: parser.Parser) -> list[nodes.Node]:
            next(stream.stream)
            return stream.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda style: datetime.now().strftime(style)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own filter would escape what is markup in HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise ValueError(message)
