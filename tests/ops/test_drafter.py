"""``Drafter``'s sequences: what it refuses, and that it keeps what it reads until it has read it.

What it computes: ``models/test_batched.py`` and ``engine/test_drafting.py``.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ops.test_decoder import HKV, LAYERS, SLOTS, WIDTH, D, _decoder, _layers

from specbranch import ops
from specbranch.ops import DecoderSequence, DraftSequence

V, STEPS, BRANCHES = 70, 4, 3


@pytest.fixture(scope="module")
def drafter() -> ops.Drafter:
    torch.manual_seed(0)
    decoder = _decoder(_layers(torch.float32, extras=True), torch.ones(WIDTH))
    return ops.Drafter(decoder, torch.randn(V, WIDTH), ops.pack_weight(torch.randn(V, WIDTH)))


def new_cache() -> torch.Tensor:
    return torch.zeros(LAYERS, 2, 1, HKV, SLOTS, D)


def sequence(count: int, **changes: Any) -> DecoderSequence:
    places = torch.arange(count, dtype=torch.int32)[None]
    prefix, bits = torch.zeros(1, dtype=torch.int32), torch.full((1, count, 1), 1).int()
    made = DecoderSequence(new_cache(), places, places.clone(), prefix, bits)
    return made._replace(**changes)


def drafting(**changes: Any) -> DraftSequence:
    logits = torch.zeros(STEPS, BRANCHES, V)
    cutoff, confidence = torch.zeros(STEPS, BRANCHES), torch.zeros(STEPS, BRANCHES)
    drawn = torch.zeros(STEPS, BRANCHES, dtype=torch.int32)
    made = DraftSequence(
        new_cache(), torch.tensor([3, 4]), 5, 1, STEPS, False, 1.0, 0, 1.0, 0.0, 7, 9, 0.0,
        logits, cutoff, drawn, confidence,
    )  # fmt: skip
    return made._replace(**changes)


# ---------------------------------------------------------------------------- memory
class Copied:
    """Exports a copy, which nothing but the export keeps."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self.copies: list[weakref.ref[np.ndarray]] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **_: Any) -> Any:
        copy = self._tensor.numpy().copy()
        self.copies.append(weakref.ref(copy))
        return copy.__dlpack__()


class Watching(Copied):
    """Exports itself, after a look at what was exported before it."""

    def __init__(self, tensor: torch.Tensor, look: Callable[[], None]) -> None:
        super().__init__(tensor)
        self._look = look

    def __dlpack__(self, **_: Any) -> Any:
        gc.collect()
        self._look()
        return self._tensor.numpy().__dlpack__()


@pytest.mark.parametrize("together", [False, True], ids=["forward", "forward_batch"])
def test_exported_copies_live_until_the_end(drafter: ops.Drafter, together: bool) -> None:
    plain, tokens = sequence(3), torch.tensor([1, 2, 3])
    expected, got = torch.empty(3, V), torch.empty(3, V)
    drafter.forward(plain.cache, tokens, *plain[1:], out=expected)
    copied = [Copied(each) for each in sequence(3)[1:]]
    alive: list[bool] = []
    # Of the slots' copies a batch needs the last: the first has said how many there are.
    out = Watching(got, lambda: alive.extend(each.copies[-1]() is not None for each in copied))
    if together:
        drafter.forward_batch([DecoderSequence(new_cache(), *copied)], tokens, out=out)
    else:
        drafter.forward(new_cache(), tokens, *copied, out=out)
    assert alive == [True] * 4 and torch.equal(got, expected)


def test_a_list_that_is_emptied_meanwhile(drafter: ops.Drafter) -> None:
    """By another thread, say; here by an argument that is looked at after the list."""
    expected, got = torch.empty(3, V), torch.empty(3, V)
    tokens, plain = torch.tensor([1, 2, 3]), sequence(3)
    drafter.forward(plain.cache, tokens, *plain[1:], out=expected)
    sequences = [sequence(3)]
    cache = weakref.ref(sequences[0].cache)
    alive: list[bool] = []

    def empty() -> None:
        sequences.clear()
        alive.append(cache() is not None)

    drafter.forward_batch(sequences, tokens, out=Watching(got, empty))
    assert alive == [True] and torch.equal(got, expected)


# ---------------------------------------------------------------------------- edges
def test_no_sequences_and_none_of_their_tokens(drafter: ops.Drafter) -> None:
    drafter.forward_batch([], torch.empty(0, dtype=torch.int64), out=torch.empty(0, V))
    assert drafter.draft_batch([]) == []
    empty, tokens = sequence(0), torch.tensor([1, 2, 3, 4, 5])
    got = torch.empty(5, V)
    drafter.forward_batch([empty, sequence(3), empty._replace(cache=new_cache()), sequence(2)],
                          tokens, out=got)  # fmt: skip
    for part, rows in ((slice(0, 3), 3), (slice(3, 5), 2)):
        alone, expected = sequence(rows), torch.empty(rows, V)
        drafter.forward(alone.cache, tokens[part], *alone[1:], out=expected)
        assert torch.equal(got[part], expected)
    assert drafter.draft_batch([drafting(steps=0), drafting()]) == [0, STEPS]


ROOM = torch.zeros(new_cache().numel() + 9)
ONE, OTHER = ROOM[:-9].view(new_cache().shape), ROOM[9:].view(new_cache().shape)
SHARED = torch.zeros(STEPS, BRANCHES, V)
BAD_FORWARDS = {
    "same cache": (
        [sequence(1, cache=ONE), sequence(1), sequence(1, cache=ONE)],
        ValueError, r"sequences\[2\]: had the same cache as sequences\[0\], must have its own",
    ),
    "a part of it": (
        [sequence(1, cache=ONE), sequence(2, cache=OTHER)],
        ValueError, r"sequences\[1\]: had the same cache as sequences\[0\]",
    ),
    "list": ([list(sequence(3))], TypeError, r"sequences\[0\] was list, must be a tuple of 5"),
    "short": ([sequence(3), sequence(3)[:4]], TypeError, r"sequences\[1\] was tuple, must be"),
    "slots": ([sequence(2), sequence(1, slots=torch.tensor([[SLOTS]]).int())], ValueError,
              r"sequences\[1\]: slots had 40 at \[0, 0\]"),
    "sizes": ([sequence(2), sequence(1, positions=torch.zeros(1, 2).int())], ValueError,
              r"sequences\[1\]: positions had shape \[1, 2\], must be \[1, N\] = \[1, 1\]"),
    "prefix": ([sequence(3, prefix_length=torch.tensor([-1]).int())], ValueError,
               r"sequences\[0\]: prefix_length had -1"),
    "kind": ([sequence(3, slots=None)], TypeError, r"sequences\[0\]: slots was NoneType"),
    "tokens": ([sequence(2), sequence(2)], ValueError, r"tokens had shape \[3\], must be \[N\] = "),
}  # fmt: skip
BAD_DRAFTS = {
    "same cache": ([drafting(cache=ONE)] * 2, ValueError,
                   r"sequences\[1\]: had the same cache as sequences\[0\]"),
    "same outputs": ([drafting(logits=SHARED), drafting(logits=SHARED)], ValueError,
                     r"sequences\[1\]: had the same out logits as sequences\[0\]"),
    "list": ([list(drafting())], TypeError, r"sequences\[0\] was list, must be a tuple of 17"),
    "kind": ([drafting(), drafting(steps="4")], TypeError, r"sequences\[1\] had an entry of anoth"),
    "steps": ([drafting(steps=STEPS + 1)], ValueError, r"sequences\[0\]: out logits had no room"),
    "negative": ([drafting(steps=-1)], ValueError, r"sequences\[0\]: out logits had no room"),
    "branches": ([drafting(branches=0)], ValueError, r"sequences\[0\]: tokens had 2 entries for 0"),
    "id": ([drafting(), drafting(tokens=torch.tensor([V]))], ValueError,
           rf"sequences\[1\]: tokens had {V} at \[0\], must be in 0..{V - 1}"),
}  # fmt: skip


@pytest.mark.parametrize(("sequences", "error", "said"), BAD_FORWARDS.values(), ids=BAD_FORWARDS)
def test_refused_forwards(drafter: ops.Drafter, sequences: Any, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        drafter.forward_batch(sequences, torch.tensor([1, 2, 3]), out=torch.empty(3, V))


@pytest.mark.parametrize(("sequences", "error", "said"), BAD_DRAFTS.values(), ids=BAD_DRAFTS)
def test_refused_drafts(drafter: ops.Drafter, sequences: Any, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        drafter.draft_batch(sequences)
