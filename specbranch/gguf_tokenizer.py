"""The tokenizer that a GGUF file carries: byte-level BPE, as ``tokenizer.ggml.*`` describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers as splitters

from .models.gguf import GgufFile

PREFIX = "tokenizer.ggml."
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5  # values of token_type; 1 is a normal token

# How text is cut into words before merges apply within each. The alternatives, in order:
# English contractions; letters with what stands before them; digits; signs; white space.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LONG = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}|"
    r" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Kind:
    """How one kind of tokenizer cuts text: by each pattern in turn, pieces of pieces."""

    patterns: tuple[str, ...]
    composes: bool = False  # to Unicode's NFC first
    whole_words: bool = False  # a word that is a token needs no merges
    adds_bos: bool = False  # where the file does not say


_GPT2 = Kind((GPT2,))
_DIGITS = Kind((r"\p{N}", GPT2))
_LLAMA3 = Kind((LONG.format(digits="{1,3}"),), whole_words=True, adds_bos=True)
_QWEN2 = Kind((LONG.format(digits=""),), composes=True)
_DEFAULT = Kind((r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", r"[0-9]{3}"))
KINDS = {
    "default": _DEFAULT,
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}


def build_backend(file: GgufFile) -> Backend:
    """The tokenizer; ``add_eos_token`` is not followed, a prompt is there to be continued.

    Raises:
        ValueError: naming the file and key, what it was and what it must be.
    """
    model = file.value(f"{PREFIX}model")
    if model != "gpt2":
        raise ValueError(
            f"{file.path}: {PREFIX}model was {model!r}; it must be 'gpt2', byte-level BPE"
        )
    kind = _kind(file)
    tokens = _strings(file, "tokens")
    types = _types(file, len(tokens))
    vocab = {token: idx for idx, token in enumerate(tokens) if types[idx] != UNUSED}
    merges = [_merge(file, idx, merge) for idx, merge in enumerate(_strings(file, "merges"))]
    try:
        bpe = models.BPE(vocab=vocab, merges=merges, ignore_merges=kind.whole_words)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            f"{file.path}: {PREFIX}merges do not fit {PREFIX}tokens: {error}"
        ) from error
    backend = Backend(bpe)
    if kind.composes:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _splitter(kind)
    backend.decoder = decoders.ByteLevel()
    _add_special(backend, tokens, types)
    if _adds_bos(file, kind):
        _add_bos(backend, file, tokens)
    return backend


def special_tokens(file: GgufFile) -> dict[str, str]:
    """Text of the special tokens by the names that chat templates use, as ``bos_token``."""
    tokens, found = _strings(file, "tokens"), {}
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    for name, short in names.items():
        token = file.token_id(name)
        if token is not None:
            found[f"{short}_token"] = tokens[_in_range(file, name, token, len(tokens))]
    return found


def _kind(file: GgufFile) -> Kind:
    name = file.value(f"{PREFIX}pre") or "default"
    if name not in KINDS:
        raise ValueError(
            f"{file.path}: {PREFIX}pre {name!r} is not supported; {', '.join(KINDS)} are"
        )
    return KINDS[name]


def _splitter(kind: Kind) -> splitters.PreTokenizer:
    cuts = [splitters.Split(Regex(pattern), "isolated") for pattern in kind.patterns]
    to_bytes = splitters.ByteLevel(add_prefix_space=False, use_regex=False)
    return splitters.Sequence([*cuts, to_bytes])


def _add_special(backend: Backend, tokens: list[str], types: list[int]) -> None:
    """Tokens that are found in the text before it is cut."""
    for wanted in ((UNKNOWN, CONTROL), (USER_DEFINED,)):
        special = CONTROL in wanted
        chosen = [
            AddedToken(token, special=special, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in wanted
        ]
        if special:
            backend.add_special_tokens(chosen)
        else:
            backend.add_tokens(chosen)


def _adds_bos(file: GgufFile, kind: Kind) -> bool:
    said = file.value(f"{PREFIX}add_bos_token")
    return kind.adds_bos if said is None else bool(said)


def _add_bos(backend: Backend, file: GgufFile, tokens: list[str]) -> None:
    bos = file.token_id("bos")
    if bos is None:
        raise ValueError(f"{file.path}: {PREFIX}bos_token_id is missing; add_bos_token needs it")
    token = tokens[_in_range(file, "bos", bos, len(tokens))]
    backend.post_processor = processors.TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", "$B"], special_tokens=[(token, bos)]
    )


def _in_range(file: GgufFile, name: str, token: int, count: int) -> int:
    if not 0 <= token < count:
        raise ValueError(
            f"{file.path}: {PREFIX}{name}_token_id was {token}; it must be in 0 .. {count - 1}"
        )
    return token


def _strings(file: GgufFile, name: str) -> list[str]:
    found = file.value(f"{PREFIX}{name}")
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(
            f"{file.path}: {PREFIX}{name} was {found!r:.40}; it must be a list of strings"
        )
    return found


def _types(file: GgufFile, count: int) -> list[int]:
    found: Any = file.value(f"{PREFIX}token_type")
    found = [1] * count if found is None else found
    if not isinstance(found, list) or len(found) != count:
        raise ValueError(
            f"{file.path}: {PREFIX}token_type was {found!r:.40}; it must be a list of {count} "
            "integers"
        )
    return found


def _merge(file: GgufFile, idx: int, merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right or " " in right:
        raise ValueError(
            f"{file.path}: {PREFIX}merges[{idx}] was {merge!r}; it must be two parts and a space"
        )
    return left, right
