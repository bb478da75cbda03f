"""Text to tokens and back, and back piece by piece without ever splitting a character."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import tokenizers

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class Tokenizer:
    """A ``tokenizer.json``.

    Args:
        backend: the tokenizer of the ``tokenizers`` library.
        eos_token_ids: tokens that end a text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, eos_token_ids: Sequence[int] = ()) -> None:
        self.backend = backend
        self.eos_token_ids = tuple(eos_token_ids)
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
    """Load ``tokenizer.json`` from a checkpoint directory (or the file itself).

    Raises:
        FileNotFoundError, ValueError: naming the file and what it must be.
    """
    path = Path(folder)
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a checkpoint directory has one")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a tokenizer.json: {error}") from error
    return Tokenizer(backend, _eos_token_ids(path.parent))


def _eos_token_ids(folder: Path) -> tuple[int, ...]:
    """``eos_token_id`` of generation_config.json or else config.json; empty where neither says."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} could not be read as a JSON object: {error}") from error
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
