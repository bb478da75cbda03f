"""SpecBranch on the device: the draft grows branches while the target reads the chain."""

from __future__ import annotations

import torch

from .. import ops
from ..ops.rounds import advance
from .parcel import Field, Parcel, Send, Step, Work
from .sps import DraftingProgram


class SpecBranchProgram(DraftingProgram):
    """SpecBranch with ``draft_stage="overlap"``: both sides at the same time.

    The draft's side first settles the round before: it moves what is kept of the surviving branch
    behind its prefix, and of the logits that its tokens were drawn from it sends those of that
    branch alone, ``[G, V]`` and not ``[G, k_max, V]``. They travel while the next branches grow.
    """

    order_fields = (
        "branch_point",
        "draft_inputs",
        "commit_slots",
        "commit_start",
        "commit_length",
    )

    def _prepare(self) -> None:
        super()._prepare()
        gamma, width, device = self.gamma, self.width, self.devices.draft
        steps = torch.arange(gamma, dtype=torch.int32, device=device).view(-1, 1)
        rows = torch.arange(width, dtype=torch.int32, device=device).view(1, -1)
        self._depth = steps.expand(gamma, width).contiguous()
        self._node = steps * width + rows
        self._bits = [_branch_bits(step, width).to(device) for step in range(gamma)]
        self._drawn_from = torch.empty(self._rows.shape, dtype=self._rows.dtype, device=device)
        self._drawn_above = torch.zeros(self._row_cutoffs.shape, device=device)
        self._growth = Parcel(
            "draft",
            self.devices,
            {
                "candidates": Field(torch.int32, (1, width)),
                "num_branches": Field(torch.int32, (1,)),
                "tokens": Field(torch.int32, (1, gamma, width)),
                "confidence": Field(torch.float32, (1, gamma, width)),
            },
        )
        self._top_confidence = torch.zeros(1, device=device)
        self._needs_logits = (
            self._settings.draw != "gumbel"
        )  # coupled: a chain is judged by matching
        self._chain_rows = Parcel(
            "draft",
            self.devices,
            {
                "cutoff": Field(torch.float32, (gamma, 1)),
                "logits": Field(self._rows.dtype, (gamma, 1, self._rows.shape[-1])),
            },
        )

    def _num_rows(self) -> int:
        return self._settings.k_max

    def steps(self) -> list[Step]:
        """Both sides to the end, then the verdict.

        The target's first step comes first: what is sent to it must not hold it up.
        """
        rows: list[Step] = [Send(self._chain_rows)] if self._needs_logits else []
        return [
            self._timed(self._read),
            Work("draft", self._settle),
            *rows,
            Work("draft", self._grow),
            Send(self._growth),
            self._timed(self._judge),
            Send(self.orders),
        ]

    def _settle(self) -> None:
        """Keep what the target's side decided to keep of the surviving branch."""
        orders, out = self.orders.received, self._chain_rows.sent
        ops.kv_commit(
            self._drafter.cache.data,
            orders["commit_slots"],
            orders["commit_start"],
            orders["commit_length"],
            backend=self._drafter.model.backend,
        )
        if not self._needs_logits:
            return
        branch = orders["verdict"][2].clamp(min=0)
        torch.index_select(self._drawn_from, 1, branch, out=out["logits"])
        torch.index_select(self._drawn_above, 1, branch, out=out["cutoff"])

    def _grow(self) -> None:
        """Candidates at the branch point, then gamma tokens behind each."""
        orders, out = self.orders.received, self._growth.sent
        point = orders["branch_point"]
        last = (point - 1).view(1, 1)
        logits = self._drafter.run(orders["draft_inputs"][0, 1:], last, last, last[0], None)
        self._find_candidates(logits, point)
        tokens = out["candidates"][0].clamp(min=0).to(torch.int64)
        positions, slots = point + self._depth, point + self._node
        drawn_at = positions.to(torch.int64) + 1
        for step in range(self.gamma):
            rows = self._drafter.run(
                tokens, positions[step : step + 1], slots[step : step + 1], point, self._bits[step]
            )
            tokens = self._draw(
                rows,
                drawn_at[step],
                self._drawn_from[step],
                self._drawn_above[step],
                out["tokens"][0, step],
                out["confidence"][0, step],
            )

    def _find_candidates(self, logits: torch.Tensor, point: torch.Tensor) -> None:
        sampler, out = self._draft_sampler, self._growth.sent
        ops.branch_topk(
            logits,
            self.width,
            sampler.temperature[:1],
            cutoff=sampler.cut(logits),
            seed=sampler.seed[:1],
            position=point.to(torch.int64),
            draw=self._settings.draw,
            out=(out["candidates"], out["num_branches"], self._top_confidence),
        )

    def _candidates(self) -> tuple[torch.Tensor, torch.Tensor]:
        growth = self._growth.received
        return growth["candidates"], growth["num_branches"]

    def _chain_logits(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return self._judged_by(self._chain_rows) if self._needs_logits else (None, None)

    def _advance(self) -> None:
        growth = self._growth.received
        accepted, token, survivor = self._verdict
        advance(
            self.state,
            accepted,
            token,
            survivor,
            growth["tokens"],
            growth["confidence"],
            epsilon=self._settings.epsilon,
            num_branches=growth["num_branches"],
        )


def _branch_bits(step: int, width: int) -> torch.Tensor:
    """What each branch's token of a step sees of the tree: its own branch."""
    words = ((step + 1) * width + 31) // 32
    bits = torch.zeros(width, words, dtype=torch.int64)
    for row in range(width):
        for node in range(row, step * width + row + 1, width):
            bits[row, node // 32] |= 1 << (node % 32)
    signed = torch.where(bits >= 1 << 31, bits - (1 << 32), bits)
    return signed.to(torch.int32).unsqueeze(0)
