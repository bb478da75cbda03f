"""The tokenizer of a GGUF file: that of the tokenizer.json it was made from."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import transformers
from models import gguf_files
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend

from specbranch import load_tokenizer
from specbranch.cli import main
from specbranch.gguf_tokenizer import KINDS
from specbranch.pair import DEMO_DIR
from specbranch.tokenizer import Tokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
HERE = Path(__file__)
ALPHABET = "abc XYZ 012 '\"_(){}\n\t\r.,:;!?$+<=>^~|éßñ日本語한국어😀①½\u0301"


def texts() -> list[str]:
    """This repository's own files, and random mixtures of all sorts of characters."""
    rng = random.Random(0)
    found = [HERE.read_text(), (HERE.parent.parent / "README.md").read_text(encoding="utf-8")]
    found += [
        "",
        " ",
        "  x",
        "don't we'll I'M",
        "a\n\n\n  b\r\n\tc  ",
        "<|endoftext|>x<|endoftext|>",
    ]
    return found + ["".join(rng.choices(ALPHABET, k=rng.randint(1, 80))) for _ in range(100)]


def fields_of(tokenizer: Tokenizer, **changes: Any) -> dict[str, Any]:
    """``tokenizer.ggml.*`` of a byte-level tokenizer.json; None leaves a key out."""
    described = json.loads(tokenizer.backend.to_str())
    vocab, merges = described["model"]["vocab"], described["model"]["merges"]
    special = {each["id"] for each in described["added_tokens"]}
    tokens = [token for token, _ in sorted(vocab.items(), key=lambda item: item[1])]
    fields = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [CONTROL if idx in special else NORMAL for idx in range(len(tokens))],
        "merges": [" ".join(pair) for pair in merges],
        "eos_token_id": 0,
    }
    return {key: value for key, value in (fields | changes).items() if value is not None}


def write(path: Path, fields: dict[str, Any], template: str | None = None) -> Path:
    """A file with a tokenizer and the least of a model."""
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length"):
        writer.add_uint32(f"llama.{key}", 2)
    writer.add_uint32("llama.attention.head_count", 1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_uint32("llama.vocab_size", 2048)
    for key, value in fields.items():
        adders = {
            bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string,
            list: writer.add_array,
        }  # fmt: skip
        adders[type(value)](f"tokenizer.ggml.{key}", value)
    if template is not None:
        writer.add_chat_template(template)
    writer.add_tensor("token_embd.weight", np.zeros((2048, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return load_tokenizer(DEMO_DIR / "target")


def test_the_demo_pair_s(demo: Tokenizer, tmp_path: Path) -> None:
    made = load_tokenizer(write(tmp_path / "model.gguf", fields_of(demo)))
    assert made.vocab_size == demo.vocab_size
    assert made.eos_token_ids == (0,)
    for text in texts():
        tokens = demo.encode(text)
        assert made.encode(text) == tokens
        assert made.decode(tokens) == demo.decode(tokens)
    assert not made.has_text(0) and made.has_text(1)
    assert load_tokenizer(tmp_path).encode("def f():") == demo.encode("def f():")


# What each kind makes of a text; the words are joined by a sign that does not occur otherwise.
CUTS = [
    ("gpt-2", "I'm 12345 x's\n\n  foo\t\tbar!!\n", "I·'m· 12345· x·'s·\n\n · foo·\t·\t·bar·!!·\n"),
    ("smollm", "a 123 ①x", "a· ·1·2·3· ·①·x"),
    ("smollm", "it's  so", "it·'s· · so"),
    ("llama-bpe", "I'M 12345 x's\n\n  foo", "I·'M· ·123·45· x·'s·\n\n· · foo"),
    ("llama-bpe", "(foo)_bar!!\n\nx \r\n y", "(foo·)_·bar·!!\n\n·x· \r\n· y"),
    ("qwen2", "I'M 123 x!\n", "I·'M· ·1·2·3· x·!\n"),
    ("qwen2", "e\u0301", "\u00e9"),
    ("default", "x==12345 $a;\n", "x·==·123·45· ·$·a·;·\n"),
]


@pytest.mark.parametrize(("kind", "text", "words"), CUTS, ids=ascii)
def test_how_text_is_cut(kind: str, text: str, words: str, demo: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", fields_of(demo, pre=kind, bos_token_id=1))
    made = load_tokenizer(path).backend
    text = made.normalizer.normalize_str(text) if made.normalizer else text
    found = [piece for piece, _ in made.pre_tokenizer.pre_tokenize_str(text)]
    assert [made.decoder.decode([piece]) for piece in found] == words.split("·")


def test_gpt2_s_cuts_are_those_of_the_library() -> None:
    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = pre_tokenizers.Split(Regex(KINDS["gpt-2"].patterns[0]), "isolated")
    for text in texts():
        spans = [span for _, span in theirs.pre_tokenize_str(text)]
        assert [span for _, span in ours.pre_tokenize_str(text)] == spans


def test_whole_words_need_no_merges(demo: Tokenizer, tmp_path: Path) -> None:
    fields = fields_of(demo, merges=["d e"])
    word = " return"
    kept = {}
    for kind in ("gpt-2", "llama-bpe"):
        path = write(tmp_path / f"{kind}.gguf", fields | {"pre": kind, "add_bos_token": False})
        kept[kind] = load_tokenizer(path).encode(word)
    assert kept["llama-bpe"] == demo.encode(word) and len(kept["llama-bpe"]) == 1
    assert len(kept["gpt-2"]) == len(word)


BOS = 1
ADDS_BOS = [("gpt-2", None, False), ("gpt-2", True, True), ("llama-bpe", None, True)]
ADDS_BOS += [("llama-bpe", False, False), ("qwen2", None, False)]


@pytest.mark.parametrize(("kind", "said", "expected"), ADDS_BOS)
def test_bos(kind: str, said: bool | None, expected: bool, demo: Tokenizer, tmp_path: Path) -> None:
    fields = fields_of(demo, pre=kind, add_bos_token=said, bos_token_id=BOS)
    template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    made = load_tokenizer(write(tmp_path / "model.gguf", fields, template))
    plain = demo.encode("hello")
    assert made.encode("hello") == [BOS] * expected + plain
    assert made.chat_template == template
    chat = [{"role": "user", "content": "hello"}]
    assert made.apply_chat_template(chat) == [BOS, *plain, 0]


def test_special_user_defined_and_unused_tokens(demo: Tokenizer, tmp_path: Path) -> None:
    fields = fields_of(demo)
    size = len(fields["tokens"])
    fields["tokens"] = [*fields["tokens"], "<tool>", "[PAD]", "<|im_end|>"]
    fields["token_type"] = [*fields["token_type"], USER_DEFINED, UNUSED, CONTROL]
    ids = {"eot_token_id": size + 2, "padding_token_id": size + 1}
    made = load_tokenizer(write(tmp_path / "model.gguf", fields | ids))
    assert made.eos_token_ids == (0, size + 2)
    assert made.encode("<tool>[PAD]<|im_end|>") == [size, *demo.encode("[PAD]"), size + 2]
    assert made.decode([size, size + 1, size + 2]) == "<tool>"
    assert [made.has_text(size + idx) for idx in range(3)] == [True, False, False]
    assert Backend.from_str(made.backend.to_str()).encode("<tool>").ids == [size]


def test_the_command_line_takes_a_file(
    demo: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo target as a GGUF file, drafted for by a checkpoint directory."""
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO_DIR / "target")
    fields = {f"tokenizer.ggml.{key}": value for key, value in fields_of(demo).items()}
    path = gguf_files.write(tmp_path / "demo.gguf", model, fields=fields)

    def output(*argv: str) -> dict[str, Any]:
        assert main([*argv, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    argv = ["generate", "def median(values):", "--max-new-tokens", "24"]
    found = output(*argv, "--target", str(path), "--draft", str(DEMO_DIR / "draft"))
    assert found["text"] == output(*argv)["text"] != ""
    described = output("info", "--target", str(path))["models"]["target"]
    assert described["weight_bytes"] == path.stat().st_size
    assert described["parameters"] == sum(each.numel() for each in model.parameters())


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"model": "llama"}, ["tokenizer.ggml.model", "'llama'", "gpt2"]),
    ({"model": None}, ["tokenizer.ggml.model", "None"]),
    ({"pre": "tekken"}, ["tokenizer.ggml.pre", "tekken", "smollm"]),
    ({"tokens": None}, ["tokenizer.ggml.tokens", "None"]),
    ({"tokens": [1, 2]}, ["tokenizer.ggml.tokens", "list of strings"]),
    ({"merges": None}, ["tokenizer.ggml.merges", "None"]),
    ({"merges": ["d e", "ab"]}, ["tokenizer.ggml.merges[1]", "'ab'"]),
    ({"merges": ["d e", "zzz qqq"]}, ["tokenizer.ggml.merges", "tokenizer.ggml.tokens"]),
    ({"token_type": [1, 1]}, ["tokenizer.ggml.token_type", "integers"]),
    ({"add_bos_token": True}, ["bos_token_id", "missing"]),
    ({"bos_token_id": 9999}, ["bos_token_id", "9999"]),
]


@pytest.mark.parametrize(("changes", "named"), BAD, ids=lambda value: str(value)[:50])
def test_bad_metadata(
    changes: dict[str, Any], named: list[str], demo: Tokenizer, tmp_path: Path
) -> None:
    path = write(tmp_path / "model.gguf", fields_of(demo, **changes))
    with pytest.raises(ValueError) as caught:
        load_tokenizer(path)
    assert all(part in str(caught.value) for part in (str(path), *named))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
