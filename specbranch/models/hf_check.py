"""A transformers model over our cache against its own plain forwards: the same, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .hf_limits import text_config

if TYPE_CHECKING:
    from .hf import HFModel

PROMPT, CUT = 9, 6  # tokens of the prompt, and of what a rollback leaves of it
LONGEST = PROMPT + 5
# Largest difference over the largest logit (of a row, its mean subtracted) that rounding explains.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}


class Reference:
    """Plain forwards over every path that the check takes through a tree.

    Tokens: a prompt p; nodes a (behind it), b, c (behind a), d (behind the prompt), e (behind c),
    f (behind b); g, h behind the committed path a, c, e; k behind the prompt cut short.

    Args:
        model: sizes; its transformers model is run as it is.

    Raises:
        ValueError: the model takes fewer tokens than the check needs.
    """

    def __init__(self, model: HFModel) -> None:
        if model.max_seq_len < LONGEST:
            raise ValueError(
                f"{model.name} cannot be served: it takes {model.max_seq_len} tokens; "
                f"{LONGEST} are needed to check it"
            )
        tokens = _tokens(model, PROMPT + 9)
        self.prompt, self.nodes = tokens[:PROMPT], tokens[PROMPT:]
        a, b, c, d, e, f, g, h, k = self.nodes
        self._spine = _plain(model, [*self.prompt, a, c, e, g, h])
        self._fork = _plain(model, [*self.prompt, a, b, f])
        self._side = _plain(model, [*self.prompt, d])
        self._short = _plain(model, [*self.prompt[:CUT], k])

    def compare(self, model: HFModel) -> float:
        """The largest relative difference of any row.

        Raises:
            ValueError: it is more than rounding explains; the message has the numbers.
        """
        a, b, c, d, e, f, g, h, k = self.nodes
        state = model.new_state(LONGEST, 8)
        state.prefill(torch.tensor(self.prompt[:4]))
        state.prefill(torch.tensor(self.prompt[4:]))

        def read(tokens: list[int], parents: list[int] | None) -> torch.Tensor:
            return state.forward(torch.tensor(tokens), parents).logits.clone()

        spine, fork, side, at = self._spine, self._fork, self._side, PROMPT
        pairs = {
            "a first node": (read([a], [-1]), spine[at : at + 1]),
            "branches": (
                read([b, c, d], [0, 0, -1]),
                torch.stack([fork[at + 1], spine[at + 1], side[at]]),
            ),
            "grown branches": (
                read([e, f], [2, 1]),
                torch.stack([spine[at + 2], fork[at + 2]]),
            ),
        }
        state.commit([0, 2, 4])
        pairs["a commit"] = (read([g, h], None), spine[at + 3 :])
        state.rollback(CUT)
        pairs["a rollback"] = (read([k], None), self._short[CUT:])
        return _worst(pairs, TOLERANCE[model.compute_dtype])


def _worst(pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], tolerance: float) -> float:
    worst = 0.0
    for step, (ours, theirs) in pairs.items():
        spread = (theirs - theirs.mean(-1, keepdim=True)).abs().amax()
        error = float(((ours.float() - theirs).abs().amax() / spread.clamp_min(1e-30)).cpu())
        if not error <= tolerance:  # also NaN
            raise ValueError(
                f"after {step} its logits differ by {error:.2g} of the largest from those of a "
                f"plain forward; it must be at most {tolerance:g}"
            )
        worst = max(worst, error)
    return worst


def _plain(model: HFModel, tokens: list[int]) -> torch.Tensor:
    """Logits ``[n, V]`` float32 of a whole sequence, without a cache."""
    ids = torch.tensor([tokens], device=model.device)
    with torch.inference_mode():
        logits: torch.Tensor = model.transformers_model(ids, use_cache=False).logits[0]
    return logits.float()


def _tokens(model: HFModel, count: int) -> list[int]:
    """Ordinary tokens, the same in every run; ids with a meaning of their own are left out."""
    special = _special(model.transformers_model.config) | set(model.eos_token_ids)
    ids = torch.randint(
        model.vocab_size, (20 * count,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    plain = [token for token in ids if token not in special]
    if len(plain) < count:
        raise ValueError(f"{model.name} cannot be served: {model.vocab_size} tokens are too few")
    return plain[:count]


def _special(config: Any) -> set[int]:
    fields = config.to_dict() | text_config(config).to_dict()
    return {
        value
        for name, value in fields.items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
