"""Speculative sampling on the device; ``DraftingProgram`` is what all drafting programs share."""

from __future__ import annotations

import torch

from ..drafting import Sampler
from ..sampling_params import SamplingParams
from .parcel import Field, Parcel, Send, Step, Work
from .program import RoundProgram


class DraftingProgram(RoundProgram):
    """A program with a draft: what it draws with, and the orders it gets from the target's side.

    ``orders`` holds the fields of ``state`` that the draft reads: the target's side writes them,
    the draft's side gets a copy where it is on another device.
    """

    plain = False
    needs_draft = True
    order_fields: tuple[str, ...] = ()

    def _prepare(self) -> None:
        assert self.draft is not None, "this policy needs a draft"
        self._drafter = self.draft
        model, device = self.draft.model, self.draft.model.device
        self.width = self._num_rows()
        self._draft_sampler = Sampler(self.params, self._settings.draw, self.width, device)
        self._draft_offsets = self._offsets.to(device)
        self.orders = self._new_orders()
        # What the draft's tokens were drawn from: [G, rows, V] and [G, rows].
        self._rows = Field(model.dtype, (self.gamma, self.width, model.vocab_size))
        self._row_cutoffs = Field(torch.float32, (self.gamma, self.width))

    def _num_rows(self) -> int:
        return 1

    def _new_orders(self) -> Parcel:
        """The parcel, with the state's tensors inside it."""
        state = self.state
        fields = {name: getattr(state, name) for name in self.order_fields}
        fields["verdict"] = self._verdict
        orders = Parcel(
            "target",
            self.devices,
            {name: Field(tensor.dtype, tuple(tensor.shape)) for name, tensor in fields.items()},
        )
        for name in self.order_fields:
            setattr(state, name, orders.sent[name])
        self._verdict = orders.sent["verdict"]
        return orders

    def load(self, tokens: list[int], params: SamplingParams) -> None:
        """Start from ``tokens``; the first orders are sent."""
        super().load(tokens, params)
        self.orders.copy()

    def _load_params(self, params: SamplingParams) -> None:
        super()._load_params(params)
        self._draft_sampler.load(params)

    def _judged_by(self, chain: Parcel) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits ``[1, G, V]`` and cutoffs ``[1, G]`` that the chain was drawn from."""
        sent, gamma = chain.received, self.gamma
        cutoff = sent["cutoff"].view(1, gamma) if self.params.has_cutoff else None
        return sent["logits"].view(1, gamma, -1), cutoff

    def _draw(
        self,
        logits: torch.Tensor,
        position: torch.Tensor,
        rows: torch.Tensor,
        cutoff: torch.Tensor,
        tokens: torch.Tensor,
        confidence: torch.Tensor | None,
    ) -> torch.Tensor:
        """Tokens ``[rows]`` int64 for the next step, from ``logits [rows, V]``.

        The last four are where things are kept: the logits, their cutoffs, the tokens drawn and
        the largest probability of each row.
        """
        sampler = self._draft_sampler
        rows.copy_(logits)
        drawn = sampler.draw_drafts(rows, sampler.cut(rows, cutoff), position)
        tokens.copy_(drawn.token)
        if confidence is not None:
            confidence.copy_(drawn.max_probability)
        # A bad row (-1) is found by what reads the tokens that are kept.
        inputs: torch.Tensor = drawn.token.clamp(min=0).to(torch.int64)
        return inputs


class SpsProgram(DraftingProgram):
    """Speculative sampling: gamma steps of the draft, then the target."""

    order_fields = ("length", "draft_inputs")

    def _prepare(self) -> None:
        super()._prepare()
        self._chain = Parcel(
            "draft",
            self.devices,
            {
                "tokens": Field(torch.int32, (1, self.gamma)),
                "cutoff": self._row_cutoffs,
                "logits": self._rows,
            },
        )

    def steps(self) -> list[Step]:
        """The draft's steps, then the target's."""
        return [
            Work("draft", self._draft_chain),
            Send(self._chain),
            self._timed(self._take_chain, self._read, self._judge),
            Send(self.orders),
        ]

    def _draft_chain(self) -> None:
        """The chain, drafted after the last two tokens: the cache may lack the first of them."""
        orders, out = self.orders.received, self._chain.sent
        tokens, count = orders["draft_inputs"][0], 2
        first = orders["length"] - 2
        for step in range(self.gamma):
            positions = first + self._draft_offsets[:, :count] if count > 1 else first.view(1, 1)
            logits = self._drafter.run(tokens, positions, positions, first, None)[-1:]
            first = first + count
            tokens = self._draw(
                logits,
                first.to(torch.int64),
                out["logits"][step],
                out["cutoff"][step],
                out["tokens"][0, step : step + 1],
                None,
            )
            count = 1

    def _take_chain(self) -> None:
        """Make the chain what the target reads, up to a bad row."""
        state, tokens = self.state, self._chain.received["tokens"]
        state.chain.copy_(tokens)
        state.chain_length.copy_((tokens >= 0).cumprod(1).sum(1))
        state.target_inputs[0, 1:] = tokens[0].clamp(min=0)

    def _chain_logits(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return self._judged_by(self._chain)
