"""HumanEval prompts come from the package's data."""

from __future__ import annotations

import importlib.util
import json

import pytest

from specbranch import prompts as prompts_module
from specbranch.demo import corpus
from specbranch.prompts import NUM_HUMANEVAL, humaneval, read_prompts, stdlib


def test_all_prompts_in_order():
    prompts = humaneval()
    assert len(prompts) == NUM_HUMANEVAL
    assert humaneval(3) == prompts[:3]
    assert all("def " in prompt for prompt in prompts)


@pytest.mark.parametrize("num_prompts", [0, NUM_HUMANEVAL + 1])
def test_a_number_there_is_not(num_prompts):
    with pytest.raises(ValueError, match="num_prompts was"):
        humaneval(num_prompts)


def test_read_prompts_takes_what_there_is(monkeypatch):
    """``--n`` is how many at most, whatever the source."""
    assert read_prompts("humaneval", NUM_HUMANEVAL + 36) == humaneval()
    train = corpus.find_corpus().train
    few = [path for path in train if path.stat().st_size > 4 * prompts_module.PIECE][:3]
    monkeypatch.setattr(corpus, "find_corpus", lambda: corpus.Corpus(few, []))
    assert read_prompts("stdlib", 200, seed=1) == stdlib(3, seed=1)
    with pytest.raises(ValueError, match="num_prompts was 200; there are 3"):
        stdlib(200)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        humaneval(1)


def test_lines_of_a_file_end_where_lines_end(tmp_path):
    """Not at a form feed, nor at what JSON may leave as it is."""
    texts = ["import os\x0cx", "a\u2028b", "c"]
    plain, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    plain.write_bytes("\r\n\n".join(texts).encode())
    objects = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    lines.write_text("\n\n".join(objects), encoding="utf-8")
    assert read_prompts(str(plain), 9) == read_prompts(str(lines), 9) == texts
    lines.write_text("\n\n".join([*objects, "{}"]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"p.jsonl, line 7 is no JSON object with a prompt"):
        read_prompts(str(lines), 9)


@pytest.mark.parametrize("prompt", [None, 5, ["a"], [{"role": "user", "content": "a"}]], ids=str)
def test_a_prompt_that_is_no_text_is_refused(tmp_path, prompt):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"prompt": prompt}))
    with pytest.raises(ValueError, match=r"p.jsonl, line 2: prompt was .*; it must be text"):
        read_prompts(str(path), 9)
