"""A forward of m tokens of the demo pair against m forwards of one: what a longer chain costs.

From the medians: c is the target's m = 1 over the draft's; T_target(m) / T_target(1) is what a
chain of m - 1 drafted tokens must make good.
"""

from __future__ import annotations

import pytest
import torch

from specbranch import demo_pair
from specbranch.pair import DEMO_DIR

PREFIX = 300
TARGET, DRAFT, _ = demo_pair()


@pytest.fixture(params=["together", "one by one"])
def implementation(request: pytest.FixtureRequest) -> str:
    """Whose turn it is."""
    return str(request.param)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("name", ["target", "draft"])
def test_forward(measure, name, rows):
    model = {"target": TARGET, "draft": DRAFT}[name]
    state = model.new_state(1024, 16)
    tokens = torch.randint(0, model.vocab_size, (PREFIX + rows,))
    state.prefill(tokens[:PREFIX])
    new = tokens[PREFIX:]

    def together() -> None:
        state.forward(new)
        state.rollback(PREFIX)

    def one_by_one() -> None:
        for token in new.split(1):
            state.forward(token)
        state.rollback(PREFIX)

    cache = state.cache.data
    seen = cache[..., : PREFIX + rows, :].numel() * cache.element_size()
    weights = (DEMO_DIR / name / "model.safetensors").stat().st_size
    measure({"together": together, "one by one": one_by_one}, weights + seen)
