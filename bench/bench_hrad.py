"""``HRad.predict``, features included, against the same MLP in plain PyTorch: cost of a round."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import num_bytes

from specbranch.hrad.fit import folded, new_mlp
from specbranch.predictor import HRad, HRadConfig

LAYERS, VOCAB = 4, 1024


@pytest.mark.parametrize("width", [256, 2048, 4096])
def test_predict(measure, width):
    torch.manual_seed(0)
    embedding, hidden = torch.randn(VOCAB, width), torch.randn(LAYERS, width)
    size = (LAYERS + 1) * width
    tensors = folded(new_mlp(size, 0.2), torch.zeros(size), torch.ones(size))
    target = SimpleNamespace(embedding=embedding, vocab_size=VOCAB)
    hrad = HRad(HRadConfig(LAYERS, width, VOCAB, 4), tensors, target)
    layers = [
        (tensors[f"layers.{idx}.weight"].float(), tensors[f"layers.{idx}.bias"]) for idx in range(3)
    ]

    @torch.inference_mode()
    def plain() -> int:
        x = torch.cat((hidden.flatten(), embedding[7])).unsqueeze(0)
        for weight, bias in layers[:-1]:
            x = F.relu(F.linear(x, weight, bias))
        return int(F.linear(x, *layers[-1]).argmax())

    assert hrad.predict(hidden, 7) == plain()
    measure(
        {"specbranch": lambda: hrad.predict(hidden, 7), "torch": plain},
        num_bytes(*tensors.values()),
    )
