"""Streaming gives the same text as decoding at once, whole characters only."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from specbranch.tokenizer import REPLACEMENT, Tokenizer, load_tokenizer

TEXTS = [
    "def f(x):\n    return x  # größer, naïve\n",
    "日本語のテキスト、中文。 한국어",
    "😀👩‍👩‍👧‍👦🏳️‍🌈🇩🇪 end",
    "e\u0301a\u0308 n\u0303 \u0915\u094d\u0937",
    "  two  spaces \t tabs\r\n",
    "",
    " ",
]
RANGES = [(32, 126), (0xA0, 0x24F), (0x300, 0x36F), (0x4E00, 0x4FFF), (0x1F300, 0x1F64F)]


def random_text(seed: int) -> str:
    rng = random.Random(seed)
    return "".join(chr(rng.randint(*rng.choice(RANGES))) for _ in range(rng.randint(1, 60)))


def byte_level() -> Tokenizer:
    """BPE on bytes, trained so that merges cross the bounds of characters."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return Tokenizer(backend)


def sentencepiece() -> Tokenizer:
    """As in Llama 2: words start with U+2581, unknown characters are byte tokens."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *map(chr, range(33, 127)), "ö", "語"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "x"), ("▁", "▁")]
    pieces += ["".join(pair) for pair in merges]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: idx for idx, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<s>"])
    return Tokenizer(backend)


@pytest.fixture(scope="module", params=[byte_level, sentencepiece], ids=lambda make: make.__name__)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made: Tokenizer = request.param()
    return made


def stream(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    """The pieces, the one of finish() last."""
    decoder = tokenizer.stream_decoder()
    return [*(decoder.push(token) for token in tokens), decoder.finish()]


@pytest.mark.parametrize("text", [*TEXTS, *map(random_text, range(25))])
def test_pieces_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    pieces = stream(tokenizer, tokens)
    assert "".join(pieces) == tokenizer.decode(tokens)
    if not text.startswith(" ") or not tokenizer.byte_tokens:  # SentencePiece drops one
        assert tokenizer.decode(tokens) == text
    assert not any(REPLACEMENT in piece for piece in pieces), "half a character"


@pytest.mark.parametrize("seed", range(25))
def test_any_tokens(tokenizer: Tokenizer, seed: int) -> None:
    """Random tokens: bytes of no character, special tokens, ids that have no text."""
    rng = random.Random(seed)
    size = tokenizer.vocab_size
    tokens = [rng.randrange(size + 3) for _ in range(rng.randint(1, 50))]
    assert "".join(stream(tokenizer, tokens)) == tokenizer.decode(tokens)


def test_text_comes_as_soon_as_it_is_whole() -> None:
    pieces = stream(byte_level(), byte_level().encode("abc"))
    assert pieces[-1] == "" and "".join(pieces[:-1]) == "abc"


@pytest.mark.parametrize("text", ["ab😁", "ñ日😁"])
@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_truncated_character(tokenizer: Tokenizer, text: str, missing: int) -> None:
    """Nothing of it comes before finish(), which shows that something was there."""
    tokens = single_bytes(tokenizer, text)
    *pieces, last = stream(tokenizer, tokens[:-missing])
    assert REPLACEMENT not in "".join(pieces)
    assert last.endswith(REPLACEMENT)
    assert "".join([*pieces, last]) == tokenizer.decode(tokens[:-missing])


def single_bytes(tokenizer: Tokenizer, text: str) -> list[int]:
    """``text`` as one token a byte."""
    backend = tokenizer.backend
    if backend.token_to_id("<0x00>") is not None:
        return [backend.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
    plain = tokenizers.Tokenizer(models.BPE(vocab=backend.get_vocab(), merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return list(plain.encode(text).ids)


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    special = 1 if tokenizer.backend.token_to_id("<s>") == 1 else 0
    tokens = [special, *tokenizer.encode("the x"), special]
    pieces = stream(tokenizer, tokens)
    assert "".join(pieces) == "the x"
    assert pieces[0] == ""


def test_load(tmp_path: Path) -> None:
    made = byte_level()
    made.backend.save(str(tmp_path / "tokenizer.json"))
    for place in (tmp_path, str(tmp_path), tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(place)
        assert loaded.vocab_size == made.vocab_size
        assert loaded.encode("naïve 😀") == made.encode("naïve 😀")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json does not exist"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"{}", b"{ broken", b"[1]", b"\xff\x00"])
def test_broken_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_text_must_be_a_string(tokenizer: Tokenizer) -> None:
    with pytest.raises(TypeError, match="text was bytes"):
        tokenizer.encode(b"abc")  # type: ignore[arg-type]


def test_end_tokens(tmp_path: Path) -> None:
    """Those of generation_config.json, or else of config.json."""
    tokenizers.Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).eos_token_ids == ()
    for name, given, expected in (
        ("config.json", 1, (1,)),
        ("generation_config.json", None, (1,)),
        ("generation_config.json", [0, 1], (0, 1)),
    ):
        (tmp_path / name).write_text(json.dumps({"eos_token_id": given}))
        assert load_tokenizer(tmp_path / "tokenizer.json").eos_token_ids == expected
