"""Tokenizers of both kinds, and their text piece by piece."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from specbranch.tokenizer import REPLACEMENT, StreamDecoder, Tokenizer, load_tokenizer

TEXTS = [
    "",
    "plain words, and  two spaces",
    " leading and trailing ",
    "def f(x):\n\treturn x + 1\n",
    "naïve café – “quotes” … €5",
    "日本語のテキスト and русский",
    "👩‍👩‍👧‍👦 flags 🇩🇪, skin 👍🏽, é decomposed",
    f"a real {REPLACEMENT} in the text {REPLACEMENT}",
]


def byte_level() -> tokenizers.Tokenizer:
    """GPT-2 style: a token is one or a few bytes, not characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{char: idx for idx, char in enumerate(alphabet, 2)}}
    merges = [("Ġ", "a"), ("a", "n"), ("ã", "ģ"), ("Ã", "©"), ("ð", "Ł")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


def sentence_piece() -> tokenizers.Tokenizer:
    """Llama 2 style: characters, and byte tokens for those that have none."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary.update({f"<0x{byte:02X}>": 3 + byte for byte in range(256)})
    for char in "▁abcdefghijklmnopqrstuvwxyz,.:+()é":
        vocabulary[char] = len(vocabulary)
    merges = [("▁", "a"), ("▁", "▁"), ("a", "n")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return backend


def metaspace() -> tokenizers.Tokenizer:
    """SentencePiece as newer conversions write it."""
    backend = sentence_piece()
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.ByteFallback(),
            decoders.Metaspace(prepend_scheme="first", split=False),
            decoders.Fuse(),
        ]
    )
    return backend


KINDS = {
    "byte level": byte_level,
    "sentence piece": sentence_piece,
    "metaspace": metaspace,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(KINDS[request.param]())


def pieces(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(token) for token in tokens), decoder.finish()]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_there_and_back(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    decoded = tokenizer.decode(tokens)
    # With Metaspace a leading space is the one that is always put there.
    assert decoded.lstrip(" ") == text.lstrip(" ")
    assert "".join(pieces(tokenizer, tokens)) == decoded


@pytest.mark.parametrize("text", [text for text in TEXTS if REPLACEMENT not in text])
def test_no_piece_holds_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    assert not any(REPLACEMENT in piece for piece in pieces(tokenizer, tokenizer.encode(text)))


def test_text_comes_as_early_as_it_can(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("and an")
    given = ""
    decoder = tokenizer.stream_decoder()
    for count, token in enumerate(tokens, 1):
        given += decoder.push(token)
        assert given == tokenizer.decode(tokens[:count])


def test_any_tokens_at_all(tokenizer: Tokenizer) -> None:
    """Also what a model may say and no text encodes to: broken UTF-8, special tokens anywhere."""
    rng = random.Random(0)
    for _ in range(400):
        tokens = rng.choices(range(tokenizer.vocab_size + 5), k=rng.randint(1, 24))
        if rng.random() < 0.5:  # runs of bytes and of spaces
            few = rng.sample(range(tokenizer.vocab_size), 4)
            tokens = rng.choices(few, k=len(tokens))
        assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens), tokens


def test_special_tokens_are_added_and_not_shown() -> None:
    tokenizer = Tokenizer(sentence_piece())
    assert tokenizer.encode("an")[0] == 1
    assert tokenizer.decode([1, *tokenizer.encode("an"), 2]) == "an"


def test_load(tmp_path: Path) -> None:
    backend = byte_level()
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded.vocab_size == backend.get_vocab_size() == 263
    assert loaded.eos_token_ids == ()
    for name, given, expected in (
        ("config.json", 1, (1,)),
        ("generation_config.json", None, (1,)),
        ("generation_config.json", [0, 1], (0, 1)),
    ):
        (tmp_path / name).write_text(json.dumps({"eos_token_id": given}))
        assert load_tokenizer(tmp_path / "tokenizer.json").eos_token_ids == expected


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json does not exist"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not"):
        load_tokenizer(tmp_path)
    with pytest.raises(TypeError, match="text was int"):
        Tokenizer(byte_level()).encode(3)  # type: ignore[arg-type]
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ValueError, match=r"config\.json could not be read"):
        load_tokenizer(tmp_path)
