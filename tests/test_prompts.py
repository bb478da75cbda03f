"""HumanEval prompts come from the package's data."""

from __future__ import annotations

import importlib.util

import pytest

from specbranch.prompts import NUM_HUMANEVAL, humaneval


def test_all_prompts_in_order():
    prompts = humaneval()
    assert len(prompts) == NUM_HUMANEVAL
    assert humaneval(3) == prompts[:3]
    assert all("def " in prompt for prompt in prompts)


@pytest.mark.parametrize("num_prompts", [0, NUM_HUMANEVAL + 1])
def test_a_number_there_is_not(num_prompts):
    with pytest.raises(ValueError, match="num_prompts was"):
        humaneval(num_prompts)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        humaneval(1)
