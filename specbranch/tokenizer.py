"""Text to tokens and back, and back piece by piece without ever splitting a character."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from .chat import ChatTemplate, Message

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class Tokenizer:
    """A tokenizer and, where the checkpoint brings one, its chat template.

    Args:
        backend: the tokenizer of the ``tokenizers`` library.
        eos_token_ids: tokens that end a text.
        chat_template: Jinja source of the text that messages become; None: there is none.
        special_tokens: text of special tokens by name (``bos_token``), for the template.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_token_ids: Sequence[int] = (),
        *,
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.backend = backend
        self.eos_token_ids = tuple(eos_token_ids)
        self.chat_template = chat_template
        self._chat = None
        if chat_template is not None:
            self._chat = ChatTemplate(chat_template, special_tokens or {})
        # SentencePiece spells what it has no token for as bytes, one token each.
        self.byte_tokens = frozenset(
            idx for token, idx in backend.get_vocab().items() if BYTE_TOKEN.fullmatch(token)
        )

        self._special = frozenset(
            idx for idx, token in backend.get_added_tokens_decoder().items() if token.special
        )

    def has_text(self, token: int) -> bool:
        """False for special tokens and ids without a token: ``decode`` passes over them."""
        return token not in self._special and self.backend.id_to_token(token) is not None

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, with the special tokens that tokenizer.json asks for."""
        if not isinstance(text, str):
            raise TypeError(f"text was {type(text).__name__}; it must be a string")
        return list(self.backend.encode(text).ids)

    def apply_chat_template(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of a conversation.

        Special tokens are those that the template writes, no other: none is put in front. As in
        transformers, the text of a special token within a message becomes that token, too.

        Args:
            messages: dicts with ``role`` and ``content``, both strings.
            add_generation_prompt: end with what opens the answer.

        Raises:
            TypeError, ValueError: no template, bad messages, or messages the template refuses.
            ModuleNotFoundError: the package ``jinja2`` is not installed.
        """
        if self._chat is None:
            raise ValueError(
                "messages were given; the tokenizer has no chat template to write them"
            )
        text = self._chat.render(messages, add_generation_prompt=add_generation_prompt)
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of ``tokens``, without special tokens."""
        return str(self.backend.decode(list(tokens), skip_special_tokens=True))

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for tokens that come one by one."""
        return StreamDecoder(self)


class StreamDecoder:
    """Text of tokens as they come; all pieces together equal ``decode`` of all tokens.

    Two windows of the last tokens are decoded, with and without the new one: what the longer text
    has more is new. It is held back while it ends within a character, and while it ends with
    SentencePiece's byte tokens: one wrong byte turns the whole run of them into replacement
    characters.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0  # first token of the window
        self._shown = 0  # tokens whose text has been given out

    def push(self, token: int) -> str:
        """Text that ``token`` completes, often empty."""
        if not self._tokenizer.has_text(token):
            return ""
        self._tokens.append(token)
        return self._new_text(final=False)

    def finish(self) -> str:
        """What is left: the bytes of an unfinished character, as replacement characters."""
        return self._new_text(final=True)

    def _new_text(self, *, final: bool) -> str:
        if not final and self._tokens[-1] in self._tokenizer.byte_tokens:
            return ""
        before = self._tokenizer.decode(self._tokens[self._start : self._shown])
        after = self._tokenizer.decode(self._tokens[self._start :])
        if len(after) <= len(before) or (after.endswith(REPLACEMENT) and not final):
            return ""
        self._start, self._shown = self._shown, len(self._tokens)
        return after[len(before) :]


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load ``tokenizer.json`` from a checkpoint directory (or the file itself), or a GGUF file's.

    The chat template is that of ``chat_template.jinja`` or ``tokenizer_config.json`` beside it.

    Raises:
        FileNotFoundError, ValueError: naming the file and what it must be.
        ModuleNotFoundError: a GGUF file, and no package ``gguf``.
    """
    path = Path(folder)
    if path.is_dir() and (path / "tokenizer.json").is_file():
        path = path / "tokenizer.json"
    elif (file := _find_gguf(path)) is not None:
        return _from_gguf(file)
    elif path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a checkpoint directory has one")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a tokenizer.json: {error}") from error
    settings = _read_object(path.parent / "tokenizer_config.json")
    return Tokenizer(
        backend,
        _eos_token_ids(path.parent),
        chat_template=_chat_template(path.parent, settings),
        special_tokens=_special_tokens(settings),
    )


def _find_gguf(path: Path) -> Path | None:
    from .models.gguf import find_gguf

    return find_gguf(path)


def _from_gguf(path: Path) -> Tokenizer:
    from .gguf_tokenizer import build_backend, special_tokens
    from .models.gguf import GgufFile

    file = GgufFile(path)
    template = file.value("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ValueError(f"{path}: tokenizer.chat_template was {template!r:.40}; it must be text")
    return Tokenizer(
        build_backend(file),
        file.eos_token_ids(),
        chat_template=template,
        special_tokens=special_tokens(file),
    )


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file, empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it held a {type(found).__name__}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} could not be read as a JSON object: {error}") from error
    return found


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The file's, or else that of tokenizer_config.json; of several the one named default."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ValueError(f"{path} could not be read as text: {error}") from error
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise ValueError(
            f"{folder / 'tokenizer_config.json'}: chat_template was {found!r:.40}; it must be text"
        )
    return found


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Such as ``bos_token``: text, or an object that holds it as content."""
    found = {}
    for name, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _eos_token_ids(folder: Path) -> tuple[int, ...]:
    """``eos_token_id`` of generation_config.json or else config.json; empty where neither says."""
    for name in ("generation_config.json", "config.json"):
        found = _read_object(folder / name).get("eos_token_id")
        if found is not None:
            return tuple(found) if isinstance(found, list) else (found,)
    return ()


def check_same_tokenizer(target: Tokenizer, draft: Tokenizer) -> None:
    """Refuse a draft whose token ids stand for other tokens than the target's.

    Ids that only one of them has are no reason: a larger model of a family often has more special
    tokens, and a draft's guesses of tokens that the target never says are rejected.

    Raises:
        ValueError: naming the first id that differs and both tokens.
    """
    ours, theirs = (
        {idx: token for token, idx in each.backend.get_vocab(with_added_tokens=True).items()}
        for each in (target, draft)
    )
    for idx in sorted(ours.keys() & theirs.keys()):
        if ours[idx] != theirs[idx]:
            raise ValueError(
                f"draft has another tokenizer: its token {idx} is {theirs[idx]!r}; "
                f"it must be the target's {ours[idx]!r}"
            )
