"""advance against the same bookkeeping written with lists."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.arrays import on_device

from specbranch import ops
from specbranch.ops.rounds import REPORT_HEAD, RoundState

EPSILON = 0.3


def random_case(batch: int, gamma: int, branches: int, room: int, seed: int) -> dict[str, Any]:
    """A state in the middle of a request, and a verdict on it."""
    generator = torch.Generator().manual_seed(seed)

    def ints(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    state = RoundState.empty(batch, gamma, room, report_rows=3)
    for name in ("commit_slots", "commit_start", "commit_length", "target_prefix", "branch_point"):
        getattr(state, name).fill_(-999)
    state.target_inputs.fill_(-999), state.draft_inputs.fill_(-999), state.report.fill_(-999)
    state.tokens.copy_(ints(0, 50, batch, room))
    state.length.copy_(ints(2, room + 1, batch))
    state.chain.copy_(ints(50, 90, batch, gamma))
    state.chain_length.copy_(ints(0, gamma + 1, batch))
    state.round.fill_(seed)
    rejected = torch.rand(batch, generator=generator) < 0.4
    accepted = torch.where(rejected, ints(0, gamma + 1, batch) % (state.chain_length + 1), -1)
    accepted = torch.where(accepted < 0, state.chain_length, accepted)
    survivor = ints(-1, max(branches, 1), batch)
    survivor[(accepted < state.chain_length) | (branches == 0)] = -1
    accepted[torch.rand(batch, generator=generator) < 0.1] = -1
    drafted = ints(0, 90, batch, gamma, branches)
    drafted[torch.rand(drafted.shape, generator=generator) < 0.05] = -1
    return {
        "state": state,
        "num_accepted": accepted,
        "next_token": ints(0, 90, batch),
        "survivor": survivor,
        "drafted": drafted,
        "confidence": torch.rand(drafted.shape, generator=generator),
        "keep": ints(0, 3, batch) if seed % 2 else None,
        "num_branches": ints(1, 9, batch) if seed % 3 else None,
    }


def expected_row(case: dict[str, Any], b: int) -> dict[str, Any]:
    state = case["state"]
    length, verified = int(state.length[b]), int(state.chain_length[b])
    tokens, chain = state.tokens[b, :length].tolist(), state.chain[b, :verified].tolist()
    accepted, token = int(case["num_accepted"][b]), int(case["next_token"][b])
    survivor, gamma = int(case["survivor"][b]), state.chain.shape[1]
    branches = case["drafted"].shape[2]
    keep = 1 if case["keep"] is None else int(case["keep"][b])
    next_chain: list[int] = []
    bad = accepted < 0 or length + accepted + 1 > state.tokens.shape[1]
    if not bad and survivor >= 0 and keep > 0:
        for step in range(gamma):
            drawn = int(case["drafted"][b, step, survivor])
            sure = float(case["confidence"][b, step, survivor]) >= EPSILON
            if drawn < 0 or (keep == 1 and not sure):
                break
            next_chain.append(drawn)
    head = [accepted, verified, survivor, token, len(next_chain)]
    head.append(0 if case["num_branches"] is None else int(case["num_branches"][b]))
    report = head + chain + [-1] * (gamma - verified)
    start = length + verified
    slots = [start + step * branches + survivor for step in range(len(next_chain))]
    if bad:
        next_chain = chain
    else:
        tokens = [*tokens, *chain[:accepted], token]
    everything = tokens + next_chain
    return {
        "bad": bad,
        "tokens": tokens,
        "chain": next_chain,
        "slots": slots,
        "start": start,
        "report": report,
        "target_inputs": [tokens[-1], *next_chain, *[0] * (gamma - len(next_chain))],
        "draft_inputs": everything[-2:],
        "target_prefix": len(tokens) - 1,
        "branch_point": len(everything),
    }


@pytest.mark.parametrize(
    ("batch", "gamma", "branches", "room"),
    [(1, 4, 3, 40), (1, 1, 1, 8), (7, 5, 2, 12), (70, 3, 4, 20), (2, 4, 0, 40), (1, 8, 6, 9)],
)
@pytest.mark.parametrize("seed", range(4))
def test_matches_reference(
    backend: str, batch: int, gamma: int, branches: int, room: int, seed: int
) -> None:
    case = random_case(batch, gamma, branches, room, seed)
    wanted = [expected_row(case, b) for b in range(batch)]
    given = dict(zip(case, on_device(backend, *case.values()), strict=True))
    state = RoundState(*on_device(backend, *vars(given.pop("state")).values()))
    ops.advance(state, **given, epsilon=EPSILON, backend=backend)
    assert int(state.round) == seed + 1
    report = state.report[seed % 3].tolist()
    for b, row in enumerate(wanted):
        length = int(state.length[b])
        assert state.tokens[b, :length].tolist() == row["tokens"]
        drafted = int(state.chain_length[b])
        assert state.chain[b, :drafted].tolist() == row["chain"]
        assert row["bad"] or not state.chain[b, drafted:].any()
        count = int(state.commit_length[b])
        assert count == (0 if row["bad"] else len(row["slots"]))
        assert row["bad"] or state.commit_slots[b, :count].tolist() == row["slots"]
        assert row["bad"] or int(state.commit_start[b]) == row["start"]
        for name in ("target_inputs", "draft_inputs"):
            assert getattr(state, name)[b].tolist() == row[name], name
        for name in ("target_prefix", "branch_point"):
            assert int(getattr(state, name)[b]) == row[name], name
        assert report[b] == row["report"]
    assert report[0][REPORT_HEAD:] == wanted[0]["report"][REPORT_HEAD:]
    assert (state.report[(seed + 1) % 3] == -999).all()


BAD = [
    ({"num_accepted": [3]}, r"num_accepted had 3 at \[0\], must be in -1..2, the chain's length"),
    ({"survivor": [2]}, r"survivor had 2 at \[0\], must be in -1..1"),
    ({"next_token": [1, 2]}, r"next_token had shape \[2\], must be \[B\] = \[1\]"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_input(change: dict[str, list[int]], message: str) -> None:
    state = RoundState.empty(1, 4, 10)
    state.length.fill_(5), state.chain_length.fill_(2)
    given = {"num_accepted": [1], "next_token": [3], "survivor": [-1]} | change
    verdict = {key: torch.tensor(value, dtype=torch.int32) for key, value in given.items()}
    drafted = torch.zeros(1, 4, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match=message):
        ops.advance(state, **verdict, drafted=drafted, confidence=drafted.float(), epsilon=0.1)
    assert int(state.length) == 5
    with pytest.raises(ValueError, match=r"length had 1 at \[0\], must be in 2..10"):
        state.length.fill_(1)
        right = {key: torch.tensor(value[:1], dtype=torch.int32) for key, value in given.items()}
        ops.advance(state, **right, drafted=drafted, confidence=drafted.float(), epsilon=0.1)
