"""The model as it runs on a GPU (torch's products, our kernels), its kernels emulated.

Against the native CPU path: the same logits to rounding, through chunks, trees, commits and
rollbacks; and whole rounds on the device, every kernel of a round included.
"""

from __future__ import annotations

import pytest
import torch
from models.checkpoints import save
from tiny_checkpoint import save_checkpoint

from specbranch import Engine, SamplingParams, load_model
from specbranch.models.llama import LlamaModel
from specbranch.models.trunk import OpsTrunk

PAIRS = {
    "llama": {},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
}


@pytest.fixture(scope="module", params=PAIRS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LlamaModel, LlamaModel]:
    folder = tmp_path_factory.mktemp("model")
    save(folder, num_hidden_layers=2, max_position_embeddings=128, **PAIRS[request.param])
    return load_model(folder), load_model(folder, backend="simt")


def test_same_logits_and_hidden_states(both: tuple[LlamaModel, LlamaModel]) -> None:
    assert isinstance(both[1].decoder, OpsTrunk)
    outputs = []
    for model in both:
        state = model.new_state(64, 8)
        state.prefill(torch.arange(20))
        first = state.forward(torch.tensor([1, 2, 3, 4]), [-1, 0, 0, 1], hidden_layers=2)
        more = state.forward(torch.tensor([5]), [3])
        state.commit([0, 1, 3])
        after = state.forward(torch.tensor([6]))
        state.rollback(21)
        again = state.forward(torch.tensor([7, 8]), hidden_layers=1)
        results = (first.logits, first.hidden, more.logits, after.logits, again.hidden)
        outputs.append([result.clone() for result in results])
    for native, emulated in zip(*outputs, strict=True):
        torch.testing.assert_close(emulated, native, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[LlamaModel, LlamaModel]]:
    """Native and emulated; the draft is the target with noise."""
    folder = tmp_path_factory.mktemp("pair")
    pairs: dict[str, tuple[LlamaModel, LlamaModel]] = {}
    checkpoint = save_checkpoint(folder, hidden_size=64, num_layers=1, seed=0)
    for backend in ("cpu", "simt"):
        target, draft = (load_model(checkpoint, backend=backend) for _ in range(2))
        noise = torch.Generator().manual_seed(1)
        draft.embedding.add_(0.08 * torch.randn(draft.embedding.shape, generator=noise))
        pairs[backend] = (target, draft)
    return pairs


@pytest.mark.parametrize("policy", ["ar", "sps", "specbranch"])
@pytest.mark.parametrize("rounds", ["host", "device"])
def test_generates_the_same(
    pair: dict[str, tuple[LlamaModel, LlamaModel]], policy: str, rounds: str
) -> None:
    """Greedy: rounding differs, but no two logits of this model are that close."""
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    results = {
        backend: Engine(*models, policy=policy, gamma=3, rounds=rounds, max_seq_len=64).generate(
            [5, 6, 7, 8], params
        )
        for backend, models in pair.items()
    }
    assert results["simt"].tokens == results["cpu"].tokens
    assert results["simt"].origins == results["cpu"].origins
