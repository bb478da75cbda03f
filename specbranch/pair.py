"""The demo pair: a small real target and draft that are shipped with the package."""

from __future__ import annotations

from pathlib import Path

from .models import CausalLM, load_model
from .predictor import HRad
from .tokenizer import Tokenizer, load_tokenizer

DEMO_DIR = Path(__file__).parent / "demo"


def demo_pair(
    *,
    dtype: str = "auto",
    device: str = "cpu",
    draft_device: str | None = None,
    target_weights: str = "exact",
    draft_weights: str = "exact",
) -> tuple[CausalLM, CausalLM, Tokenizer]:
    """Load the target, the draft and the tokenizer of ``specbranch/demo`` (see its MODEL_CARD.md).

    Args:
        dtype, device: as for ``load_model``.
        draft_device: where the draft is to be, if elsewhere.
        target_weights, draft_weights: as ``weights`` of ``load_model``, of each.

    Raises:
        FileNotFoundError: the weights are not installed.
    """
    target = load_model(DEMO_DIR / "target", dtype=dtype, device=device, weights=target_weights)
    draft = load_model(
        DEMO_DIR / "draft",
        dtype=dtype,
        device=draft_device or device,
        weights=draft_weights,
    )
    return target, draft, load_tokenizer(DEMO_DIR / "target")


def demo_predictor(target: CausalLM) -> HRad:
    """The H-RAD predictor that was trained for the demo pair (see its MODEL_CARD.md).

    Args:
        target: the demo pair's.
    """
    return HRad.load(DEMO_DIR / "hrad.safetensors", target)
