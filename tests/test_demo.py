"""The demo pair as it is shipped, and a smoke run of the training that made it."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

import specbranch
from specbranch.demo.corpus import find_corpus, read_text
from specbranch.demo.train import Budget, train_pair, train_tokenizer
from specbranch.pair import DEMO_DIR

NUM_FILES = 300
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small library: packages, a file that is not UTF-8, some that are to be skipped."""
    folder = tmp_path_factory.mktemp("library")
    rng = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "value", "index", "result", "total"]
    for idx in range(NUM_FILES):
        path = folder / f"package{idx % 7}" / f"module{idx}.py"
        path.parent.mkdir(exist_ok=True)
        lines = [
            f"def {rng.choice(words)}_{idx}(x):\n    return x + {rng.randint(0, 99)}  # größer"
        ]
        lines += [f"{rng.choice(words)} = {rng.choice(words)}({idx})" for _ in range(8)]
        path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    (folder / "latin.py").write_bytes(b"# \xe4\n")
    (folder / "site-packages").mkdir()
    (folder / "site-packages" / "skipped.py").write_text("skipped = 1\n")
    (folder / "large.py").write_text("0, " * 100_000)
    return folder


# ---------------------------------------------------------------------------- corpus, tokenizer
def test_split(root: Path) -> None:
    corpus = find_corpus(root)
    assert not set(corpus.train) & set(corpus.held_out)
    names = {path.name for path in [*corpus.train, *corpus.held_out]}
    assert len(corpus.train) + len(corpus.held_out) == len(names) == NUM_FILES + 1
    assert not names & {"skipped.py", "large.py"}
    assert 1 <= len(corpus.held_out) <= NUM_FILES // 10
    assert find_corpus(root) == corpus


def test_split_goes_by_the_name_alone(root: Path, tmp_path: Path) -> None:
    """Another place and fewer files: the others stay on their side."""
    corpus = find_corpus(root)
    for path in [*corpus.train[::3], *corpus.held_out]:
        copy = tmp_path / path.relative_to(root)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text("x = 1\n")
    moved = find_corpus(tmp_path)
    relative = [path.relative_to(tmp_path) for path in moved.held_out]
    assert relative == [path.relative_to(root) for path in corpus.held_out]


def test_standard_library_is_split_in_two() -> None:
    corpus = find_corpus()
    assert len(corpus.train) > 100 and corpus.held_out
    assert not set(corpus.train) & set(corpus.held_out)


def test_a_file_that_is_not_utf8_is_empty(root: Path) -> None:
    assert read_text(root / "latin.py") == ""


def check_round_trip(tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    texts = ["", " ", "\r\n\t  x", "naïve 😀👩‍👩‍👧", "e\u0301 \u0915\u094d\u0937", "\x00\x7f\ufffd"]
    for _ in range(50):
        codes = (
            rng.choice([rng.randint(0, 0xD7FF), rng.randint(0xE000, 0x10FFFF)]) for _ in "x" * 30
        )
        texts.append("".join(map(chr, codes)))
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_tokenizer_round_trip(root: Path) -> None:
    tokenizer = train_tokenizer(find_corpus(root), 400)
    assert tokenizer.get_vocab_size() <= 400
    check_round_trip(tokenizer)


# ---------------------------------------------------------------------------- training
def test_train_pair(root: Path, tmp_path: Path) -> None:
    out, minutes = tmp_path / "out", 1 / 60
    budget = Budget(
        minutes, minutes, batch=2, context=32, vocab=400, teacher_windows=8, written_windows=4
    )
    measured = train_pair(out, tmp_path / "work", budget, root)
    assert 0 < measured.alpha_1 <= 1 and 0 < measured.alpha_07 <= 1
    assert measured.target_loss < 7 and measured.tokens > 50
    assert not list((tmp_path / "work").glob("*.pt")), "checkpoints are left"
    check_card(out / "MODEL_CARD.md")
    tokens = torch.tensor(specbranch.load_tokenizer(out / "target").encode("def alpha_3(x):\n"))
    for name in ("target", "draft"):
        ours = specbranch.load_model(out / name)
        logits = ours.new_state(64, len(tokens)).forward(tokens).logits
        theirs = AutoModelForCausalLM.from_pretrained(out / name, dtype=torch.float32)
        with torch.no_grad():
            expected = theirs(tokens.unsqueeze(0)).logits[0]
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)
        assert ours.eos_token_ids == (0,)


# ---------------------------------------------------------------------------- what is shipped
def check_card(path: Path) -> dict[str, float]:
    """The measured figures of a model card, each in its range."""
    text = path.read_text()
    found = {
        row.split(",")[0].strip(): [float(value) for value in re.findall(r"\| *(\d+\.\d{3})", rest)]
        for row, rest in re.findall(r"^\| ([a-z][^|]*)(\|.*)$", text, re.MULTILINE)
    }
    (target, draft), (alpha,), (agreement,) = (
        found[key] for key in ("loss", "temperature 1", "greedy")
    )
    assert 0 < target < 10 and 0 < draft < 10
    assert 0 <= alpha <= 1 and 0 <= agreement <= 1
    return {"target": target, "draft": draft, "alpha": alpha}


def test_shipped_card() -> None:
    figures = check_card(DEMO_DIR / "MODEL_CARD.md")
    assert figures["target"] < figures["draft"], "a target worse than its draft"
    assert 0 < figures["alpha"] < 1


def test_shipped_files_are_small() -> None:
    files = [path for path in DEMO_DIR.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {"model.safetensors", "tokenizer.json"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) <= 20 * MEGABYTE


def test_shipped_pair() -> None:
    target, draft, tokenizer = specbranch.demo_pair()
    assert target.vocab_size == draft.vocab_size == tokenizer.vocab_size
    assert target.eos_token_ids == draft.eos_token_ids != ()
    check_round_trip(tokenizer.backend)
    tokens = torch.tensor(tokenizer.encode("import os\n\n\ndef main():\n    print("))
    rows = []
    for model in (target, draft):
        state = model.new_state(64, 1)
        state.prefill(tokens[:-1])
        rows.append(state.forward(tokens[-1:]).logits[0].softmax(-1))
    overlap = torch.minimum(*rows).sum().item()
    assert 0 < overlap <= 1 + 1e-5
