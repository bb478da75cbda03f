"""What a caller may give as a prompt, or as several, and the token ids it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypeGuard

from .chat import Message
from .sampling_params import SamplingParams
from .tokenizer import Tokenizer

Prompt: TypeAlias = str | Sequence[int] | Sequence[Message]


def is_batch(prompt: Prompt | Sequence[Prompt]) -> TypeGuard[Sequence[Prompt]]:
    """Whether it is a list of prompts, of any kind; decided by its first element.

    A list of integers is one prompt of ids, one of dicts is one chat; an empty list is an empty
    prompt.
    """
    if not isinstance(prompt, (list, tuple)) or not prompt:
        return False
    first = prompt[0]
    if isinstance(first, (bytes, Mapping)):
        return False
    return isinstance(first, Sequence) or getattr(first, "ndim", 0) > 0


def check_prompts(prompts: Sequence[Prompt]) -> None:
    """Refuse what is no list of prompts, a single text above all: its letters are none.

    Raises:
        TypeError: naming what it was.
    """
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts was {type(prompts).__name__}; it must be a list of prompts")


def params_of_each(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> Sequence[SamplingParams | None]:
    """One for each of ``count`` prompts.

    Raises:
        ValueError: another number of them.
    """
    if not isinstance(params, (list, tuple)):
        return [params] * count  # type: ignore[list-item]
    if len(params) != count:
        raise ValueError(
            f"params had {len(params)} entries for {count} prompts; it must be one "
            "SamplingParams for all, or have one for each"
        )
    return params


def prompt_tokens(prompt: Prompt, tokenizer: Tokenizer | None, vocab_size: int) -> list[int]:
    """The token ids of one prompt, at least one.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError("prompt was text; an engine without a tokenizer takes token ids")
        tokens = tokenizer.encode(prompt)
    elif _is_chat(prompt):
        if tokenizer is None:
            raise ValueError("prompt was messages; an engine without a tokenizer takes ids")
        tokens = tokenizer.apply_chat_template(prompt)
    else:
        tokens = _token_ids(prompt)
    if not tokens:
        raise ValueError("prompt was empty; it must have at least one token")
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise ValueError(f"prompt had token id {token}; ids must be in 0 .. {vocab_size - 1}")
    return tokens


def _is_chat(prompt: Sequence[int] | Sequence[Message]) -> TypeGuard[Sequence[Message]]:
    listed = isinstance(prompt, Sequence) and not isinstance(prompt, bytes)
    return listed and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _token_ids(prompt: Sequence[int] | Sequence[Message]) -> list[int]:
    values = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if not isinstance(values, Sequence) or isinstance(values, bytes):
        raise TypeError(
            f"prompt was {type(prompt).__name__}; it must be text, token ids or messages"
        )
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"prompt contained {value!r}; it must be text or integer token ids")
    return list(values)
