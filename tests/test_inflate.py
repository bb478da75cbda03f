"""Inflated checkpoints compute what their sources do, at another cost.

The comparer's tolerance comes from the sources: what two right float32 implementations, ours and
transformers', differ by. Sums of an inflated model have the same terms, zeros apart, in another
order, so its error is of that size. Constructions that are wrong in one place are rejected; the
least of those mistakes, an eps that ignores the constant, is off by ten times the tolerance.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.checkpoints import save
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from specbranch import Engine, SamplingParams, load_model, load_tokenizer
from specbranch.models import LlamaModel
from specbranch.models.config import read_config
from specbranch.pair import DEMO_DIR

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import inflate as bench_inflate
from inflate import Inflation, inflate, our_model, transformers_model
from shapes import SHAPES, Shape

SLACK = 4  # how many times the sources' own disagreement an inflated model may be off
TOKENS = random.Random(0).choices(range(1024), k=96)


@torch.no_grad()
def theirs(model: PreTrainedModel, tokens: list[int] = TOKENS) -> torch.Tensor:
    """Logits ``[n, V]`` float32 of transformers."""
    return model(torch.tensor([tokens]), use_cache=False).logits[0].float()


def ours(model: LlamaModel, tokens: list[int] = TOKENS) -> torch.Tensor:
    """Logits ``[n, V]`` of this library."""
    state = model.new_state(len(tokens), len(tokens))
    return state.forward(torch.tensor(tokens)).logits.clone()


class Source:
    """A model of the demo pair: its logits, and how well float32 determines them."""

    def __init__(self, name: str) -> None:
        self.folder = DEMO_DIR / name
        self.logits = theirs(AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32))
        noise = float((ours(load_model(self.folder)) - self.logits).abs().max())
        assert 1e-6 < noise < 1e-3, "the tolerance would be meaningless"
        self.tolerance = SLACK * noise

    def check(self, logits: torch.Tensor) -> None:
        """``logits [n, V']`` are the source's, and the added tokens have no probability."""
        vocab = self.logits.shape[1]
        difference = float((logits[:, :vocab] - self.logits).abs().max())
        assert difference <= self.tolerance, f"{difference:.2e}, not within {self.tolerance:.2e}"
        for temperature in (0.1, 1.0, 5.0):
            assert float(torch.softmax(logits / temperature, -1)[:, vocab:].sum()) == 0.0


@pytest.fixture(scope="module")
def sources() -> dict[str, Source]:
    return {name: Source(name) for name in ("target", "draft")}


SPOILED = Shape(156, 3, 12, 3, 64, 576, 1030)  # what the wrong constructions start from
# The target has 8 layers, 8 query and 4 key-value heads of 32, width 256, inner 1024.
CASES = {
    "target wider": ("target", Shape(272, 8, 8, 4, 32, 1024, 1024)),
    "target, heads four times as large": ("target", Shape(272, 8, 8, 4, 128, 1024, 1024)),
    "target, no shared keys": ("target", Shape(288, 8, 12, 12, 32, 1024, 1024)),
    "target, room in each group": ("target", Shape(280, 8, 20, 5, 64, 1024, 1024)),
    "target, all of it": ("target", SHAPES["tiny"]),
    "draft, deeper": ("draft", Shape(160, 4, 4, 2, 32, 576, 1024)),
    "draft, all keys in one group": ("draft", Shape(162, 3, 9, 3, 96, 576, 1030)),
    "draft, all of it": ("draft", SPOILED),
    "draft, more tokens": ("draft", Shape(132, 2, 4, 4, 32, 512, 5000)),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_sources(sources: dict[str, Source], case: str) -> None:
    source, shape = sources[CASES[case][0]], CASES[case][1]
    inflation = Inflation(source.folder, shape)
    source.check(ours(our_model(inflation)))
    source.check(theirs(transformers_model(inflation)))


def test_a_long_sequence_token_by_token(sources: dict[str, Source]) -> None:
    """Caches too: the head of a prompt in one forward, the rest one by one."""
    source = sources["draft"]
    state = our_model(Inflation(source.folder, "tiny")).new_state(len(TOKENS), 1)
    state.prefill(torch.tensor(TOKENS[:64]))
    rows = []
    for token in TOKENS[64:]:
        rows.append(state.forward(torch.tensor([token])).logits[0].clone())
        state.commit([0])
    vocab = source.logits.shape[1]
    difference = (torch.stack(rows)[:, :vocab] - source.logits[64:]).abs().max()
    assert float(difference) <= source.tolerance


def test_acceptance_is_the_sources() -> None:
    """What the benchmark is for: a costlier draft guesses exactly what the cheap one did."""
    target, cheap = load_model(DEMO_DIR / "target"), load_model(DEMO_DIR / "draft")
    costly = our_model(Inflation(DEMO_DIR / "draft", Shape(156, 3, 12, 3, 64, 576, 1024)))
    prompt = load_tokenizer(DEMO_DIR / "target").encode("def quicksort(items):")
    params = SamplingParams(max_new_tokens=48, temperature=0.0, ignore_eos=True)
    first, second = (
        Engine(target, draft, policy="sps").generate(prompt, params) for draft in (cheap, costly)
    )
    assert first.tokens == second.tokens and first.origins == second.origins
    assert first.stats.accepted == second.stats.accepted > 10


# ---------------------------------------------------------------------------- wrong constructions
def uncorrected_norm(inflation: Inflation) -> None:
    inflation._norm_scale = 1.0


def uncorrected_eps(inflation: Inflation) -> None:
    """The constant's share of the mean of squares is not taken from eps."""
    small = inflation.small
    inflation._norm_eps = lambda: small.norm_eps * small.hidden_size / inflation.shape.hidden


def unscaled_queries(inflation: Inflation) -> None:
    def plain(values: torch.Tensor, old: torch.Tensor | None) -> None:
        inflation._query(values, None if old is None else old / math.sqrt(64 / 32))

    inflation._makers["q_proj"] = plain


def contiguous_pairs(inflation: Inflation) -> None:
    """Rotary pairs at the frequencies of a larger head."""
    heads, dim = inflation._heads, inflation.shape.head_dim

    def moved(rows: torch.Tensor) -> torch.Tensor:
        head, at = rows // dim, rows % dim
        half, idx = at // (dim // 2), at % (dim // 2) // 2
        return head * dim + half * (dim // 2) + idx

    heads.query_rows, heads.key_rows = moved(heads.query_rows), moved(heads.key_rows)


def additional_heads_read(inflation: Inflation) -> None:
    """Query heads that share the old values reach the residual."""
    inflation._heads.live_columns = inflation._heads.out_columns


def random_maker(part: str) -> Callable[[Inflation], None]:
    """Additional layers have an unrestricted ``part``."""

    def spoil(inflation: Inflation) -> None:
        maker = inflation._makers[part]

        def lax(values: torch.Tensor, old: torch.Tensor | None) -> None:
            if old is not None:
                maker(values, old)

        inflation._makers[part] = lax

    spoil.__name__ = f"additional_{part}"
    return spoil


def no_padding_bias(inflation: Inflation) -> None:
    inflation._makers["lm_head"] = lambda values, old: inflation._embed(values[: len(old)], old)


WRONG = [
    uncorrected_norm,
    uncorrected_eps,
    unscaled_queries,
    contiguous_pairs,
    additional_heads_read,
    random_maker("v_proj"),
    random_maker("gate_proj"),
    no_padding_bias,
]


@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_the_comparer_rejects(
    sources: dict[str, Source], spoil: Callable[[Inflation], None]
) -> None:
    source = sources["draft"]
    inflation = Inflation(source.folder, SPOILED)
    spoil(inflation)
    with pytest.raises(AssertionError):
        source.check(ours(our_model(inflation)))


# ---------------------------------------------------------------------------- cost
def linear_inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What each matrix of ``model`` meets: the largest size of each of its inputs ``[in]``."""
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Callable[[Any, tuple[torch.Tensor]], None]:
        def hook(_: Any, args: tuple[torch.Tensor]) -> None:
            seen[name] = args[0].abs().flatten(0, -2).amax(0)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(watch(name))
    theirs(model)
    return seen


def test_what_meets_zeros_is_random(sources: dict[str, Source]) -> None:
    inflation = Inflation(sources["draft"].folder, Shape(160, 3, 8, 8, 64, 576, 1030))
    inputs = linear_inputs(transformers_model(inflation))
    assert len(inputs) == 3 * 7 + 1
    num_zero = 0
    for name, sizes in inputs.items():
        idle = inflation[f"{name}.weight"][:, sizes == 0]
        num_zero += idle.numel()
        assert (idle != 0).float().mean() > 0.9999 or not idle.numel(), name
        if idle.numel() > 1000 and name != "lm_head":
            assert float(idle.float().std()) == pytest.approx(bench_inflate.STD, rel=0.05)
    assert num_zero > 1e5, "the test would see nothing"
    for name in inflation:
        if name.endswith("norm.weight"):
            assert (inflation[name] != 0).all()


def test_output_matrices_of_additional_layers_are_not_zeros(sources: dict[str, Source]) -> None:
    inflation = Inflation(sources["draft"].folder, Shape(160, 4, 12, 3, 64, 576, 1030))
    for part in ("self_attn.o_proj", "mlp.down_proj", "mlp.up_proj"):
        assert (inflation[f"model.layers.0.{part}.weight"] != 0).float().mean() > 0.9999


def test_the_seed_decides_the_random_weights(sources: dict[str, Source]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    shape = Shape(160, 4, 12, 3, 64, 576, 1030)
    first, again, other = (
        Inflation(sources["draft"].folder, shape, seed=seed)[name] for seed in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_bfloat16_costs_no_more_than_it_costs_the_source(sources: dict[str, Source]) -> None:
    """Weights that were bfloat16 are scaled and rounded again: half as much error again at most."""
    source = sources["draft"]
    plain = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.bfloat16)
    inflated = transformers_model(Inflation(source.folder, "tiny", dtype=torch.bfloat16))
    vocab = source.logits.shape[1]
    errors = [
        float((theirs(model)[:, :vocab] - source.logits).abs().mean())
        for model in (plain, inflated)
    ]
    assert errors[1] <= 1.5 * errors[0]


@pytest.mark.parametrize("name", ["68m", "1b", "7b", "13b"])
def test_named_shapes_have_the_size_of_their_name(name: str) -> None:
    source = "draft" if name == "68m" else "target"
    millions = Inflation(DEMO_DIR / source, name).num_parameters / 1e6
    assert millions == pytest.approx(
        {"68m": 68, "1b": 1100, "7b": 6738, "13b": 13016}[name], rel=0.01
    )


# ---------------------------------------------------------------------------- files
@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inflated")
    inflate(DEMO_DIR / "draft", folder, "tiny", shard_bytes=10_000_000)
    return folder


def test_the_files_are_the_tensors(written: Path) -> None:
    inflation = Inflation(DEMO_DIR / "draft", "tiny")
    files = sorted(written.glob("*.safetensors"))
    assert len(files) > 3 and all(path.stat().st_size < 10_100_000 for path in files)
    tensors = {name: tensor for path in files for name, tensor in load_file(path).items()}
    assert tensors.keys() == inflation.keys()
    assert all(torch.equal(tensors[name], inflation[name]) for name in inflation)
    assert read_config(written) == inflation.config


def test_the_directory_is_a_checkpoint(sources: dict[str, Source], written: Path) -> None:
    sources["draft"].check(ours(load_model(written)))
    model = AutoModelForCausalLM.from_pretrained(written, dtype=torch.float32)
    sources["draft"].check(theirs(model))
    small = load_tokenizer(DEMO_DIR / "draft")
    assert load_tokenizer(written).encode("def f():") == small.encode("def f():")


# ---------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ("9b", ["9b", "7b"]),
        (Shape(128, 2, 4, 2, 32, 512, 1024), ["hidden 128", "129"]),
        (Shape(160, 1, 4, 2, 32, 512, 1024), ["layers 1", "2"]),
        (Shape(160, 2, 3, 3, 32, 512, 1024), ["kv_heads 3", "4"]),
        (Shape(160, 2, 4, 2, 48, 512, 1024), ["head_dim 48", "32"]),
        (Shape(160, 2, 4, 2, 32, 500, 1024), ["inner 500", "512"]),
        (Shape(160, 2, 4, 2, 32, 512, 1000), ["vocab 1000", "1024"]),
    ],
    ids=str,
)
def test_a_shape_that_is_too_small(shape: str | Shape, named: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        Inflation(DEMO_DIR / "draft", shape)
    assert all(part in str(caught.value) for part in named)


def test_other_families_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="qwen2"):
        Inflation(save(tmp_path, "qwen2"), "tiny")
