"""The model against transformers, along every way in which a sequence can be fed to it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from models.checkpoints import FAMILIES, build, reference
from transformers import PreTrainedModel, Qwen3ForCausalLM

import specbranch
from specbranch.models import llama
from specbranch.models import state as state_module
from specbranch.models.llama import LlamaModel

PROMPT_LENGTH = 90
TOLERANCE = 1e-4


class Case:
    """A family's model in both libraries, and a prompt."""

    def __init__(self, family: str, folder: Path) -> None:
        self.theirs: PreTrainedModel = build(family)
        self.theirs.save_pretrained(folder)
        self.ours: LlamaModel = specbranch.load_model(folder)
        self.prompt = random.Random(0).choices(range(self.ours.vocab_size), k=PROMPT_LENGTH)

    def state(self, prefix: list[int]) -> llama.LlamaState:
        """A state whose prefix is ``prefix``."""
        state = self.ours.new_state(200, 64)
        state.prefill(torch.tensor(prefix))
        return state

    def check(self, logits: torch.Tensor, sequence: list[int]) -> None:
        """``logits [n, V]`` belong to the last n tokens of ``sequence``."""
        expected = reference(self.theirs, sequence)[len(sequence) - len(logits) :]
        assert expected.abs().max() > 0.5, "logits this small would agree by chance"
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def test_whole_prompt_in_one_forward(case: Case) -> None:
    state = case.ours.new_state(200, PROMPT_LENGTH)
    case.check(state.forward(torch.tensor(case.prompt)).logits, case.prompt)


def test_prefill_in_chunks(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "PREFILL_CHUNK", 16)
    state = case.state(case.prompt[:50])
    state.prefill(torch.tensor(case.prompt[50:80]))
    assert state.length == 80
    case.check(state.forward(torch.tensor(case.prompt[80:])).logits, case.prompt)


def test_decode_one_by_one(case: Case) -> None:
    state = case.state(case.prompt[:60])
    rows = []
    for token in case.prompt[60:]:
        rows.append(state.forward(torch.tensor([token])).logits[0].clone())
        state.commit([0])
    assert state.length == PROMPT_LENGTH
    case.check(torch.stack(rows), case.prompt)


# A tree grown in four forwards: (tokens, parents).
GROWTH: list[tuple[list[int], list[int] | None]] = [
    ([5], [-1]),
    ([7, 8, 9], [0, 0, -1]),
    ([11, 12, 13, 14], [1, 2, 2, 3]),
    ([15, 16], None),
]


def paths() -> list[list[int]]:
    """The path from the root to each node of ``GROWTH``."""
    found: list[list[int]] = []
    for tokens, parents in GROWTH:
        for parent in parents or range(len(found) - 1, len(found) - 1 + len(tokens)):
            found.append([*(found[parent] if parent >= 0 else []), len(found)])
    return found


NODE_TOKENS = [token for tokens, _ in GROWTH for token in tokens]


def grow(state: llama.LlamaState) -> torch.Tensor:
    """Logits of all nodes of ``GROWTH``."""
    rows = [state.forward(torch.tensor(t), p).logits.clone() for t, p in GROWTH]
    return torch.cat(rows)


def check_tree(case: Case, logits: torch.Tensor, prefix: list[int]) -> None:
    for node, path in enumerate(paths()):
        case.check(logits[node : node + 1], prefix + [NODE_TOKENS[idx] for idx in path])


def test_tree_grown_in_several_forwards(case: Case) -> None:
    check_tree(case, grow(case.state(case.prompt)), case.prompt)


def test_tree_of_more_than_32_nodes(case: Case) -> None:
    rng = random.Random(1)
    state, nodes = case.state(case.prompt[:20]), 45
    parents = [rng.randint(-1, idx - 1) for idx in range(nodes)]
    tokens = rng.choices(range(case.ours.vocab_size), k=nodes)
    split = 30
    rows = [
        state.forward(torch.tensor(tokens[lo:hi]), parents[lo:hi]).logits.clone()
        for lo, hi in ((0, split), (split, nodes))
    ]
    logits = torch.cat(rows)
    for node in (0, 17, split, 33, nodes - 1):
        path = [node]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        case.check(logits[node : node + 1], case.prompt[:20] + [tokens[idx] for idx in path])


def test_after_rollback(case: Case) -> None:
    state = case.state(case.prompt)
    grow(state)
    state.rollback(70)
    assert (state.length, state.num_nodes) == (70, 0)
    check_tree(case, grow(state), case.prompt[:70])


def test_after_commit_of_a_branch(case: Case) -> None:
    state = case.state(case.prompt)
    grow(state)
    branch = [0, 2, 6]
    state.commit(branch)
    assert (state.length, state.num_nodes) == (PROMPT_LENGTH + 3, 0)
    prefix = case.prompt + [NODE_TOKENS[idx] for idx in branch]
    case.check(state.forward(torch.tensor([3, 4])).logits, [*prefix, 3, 4])
    state.commit([0, 1])
    check_tree(case, grow(state), [*prefix, 3, 4])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_hidden_states(case: Case, count: int) -> None:
    state = case.state(case.prompt[:60])
    out = state.forward(torch.tensor(case.prompt[60:]), hidden_layers=count)
    with torch.no_grad():
        theirs = case.theirs(torch.tensor([case.prompt]), output_hidden_states=True).hidden_states
    assert out.hidden is not None
    ours = out.hidden.clone()
    assert ours.shape == (30, count, case.ours.config.hidden_size)
    case.check(out.logits, case.prompt)
    # theirs[-1] has been through the final norm; ours has not.
    with torch.no_grad():
        ours[:, -1] = case.theirs.model.norm(ours[:, -1])
    expected = torch.stack([layer[0, 60:] for layer in theirs[-count:]], dim=1)
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)


def test_hidden_states_of_a_tree(case: Case) -> None:
    state = case.state(case.prompt[:60])
    state.forward(torch.tensor([1]))
    hidden = state.forward(torch.tensor([2, 3]), [0, -1], hidden_layers=2).hidden
    assert hidden is not None
    for row, tail in ((0, [1, 2]), (1, [3])):
        tokens = torch.tensor([case.prompt[:60] + tail])
        with torch.no_grad():
            theirs = case.theirs(tokens, output_hidden_states=True).hidden_states[-2][0, -1]
        torch.testing.assert_close(hidden[row, 0], theirs, atol=TOLERANCE, rtol=0)


def test_bfloat16(tmp_path: Path) -> None:
    build("qwen3").to(torch.bfloat16).save_pretrained(tmp_path)
    # Read anew: the conversion above has rounded the rotary frequencies too.
    widened = Qwen3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prompt = random.Random(2).choices(range(128), k=40)
    expected = reference(widened, prompt)
    for dtype, atol in (("auto", TOLERANCE), ("bfloat16", 0.08 * float(expected.std()))):
        ours = specbranch.load_model(tmp_path, dtype=dtype)
        assert ours.dtype == (torch.float32 if dtype == "auto" else torch.bfloat16)
        state = ours.new_state(64, 8)
        state.prefill(torch.tensor(prompt[:-4]))
        logits = state.forward(torch.tensor(prompt[-4:]), [-1, 0, 1, 2]).logits
        difference = (logits.float() - expected[-4:]).abs()
        assert difference.mean() < atol, dtype


def test_sharded(tmp_path: Path) -> None:
    model = build("llama3")
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    prompt = list(range(30))
    logits = specbranch.load_model(tmp_path).new_state(64, 30).forward(torch.tensor(prompt)).logits
    torch.testing.assert_close(logits, reference(model, prompt), atol=TOLERANCE, rtol=0)
