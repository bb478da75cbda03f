"""Traces: what draft and target of a pair say along the text of a request, one token at a time.

At each position t behind the prompt a trace holds a rollout, the G tokens that the draft draws
after ``X[:t]``, how many of its leading tokens the target accepts, and the token that is committed:
the first drafted one if it was accepted, else the recovered one. Then t goes one on.

Why that is enough to replay a policy. Draws and verdicts are functions of (seed, position) and of
what stands before the position. Say the first a tokens of the rollout at t were accepted. Then they
are the committed text, the rollout at t + 1 is that at t without its first token, and the verdicts
on its tokens are the same ones. Any chain that a policy puts behind ``X[:t]`` is a beginning of the
rollout at t, so ``accepted[t]`` judges it, whatever its length; what a policy looks at to choose
the length is the confidence or the entropy of the rows, and these are kept. The token at a branch
point is the committed one, and its rank says which branch survives: the branch's tokens are the
rollout behind it.

- Greedy and coupled: a token at a position is drawn in one way, whether it is judged, recovered,
  the bonus, or a branch. The text of the trace is that of every policy, and the replay is exact.
- Rejection: a bonus token is a draw of its own from P where the trace has a verdict on a drafted
  token, and branch i draws in lane i where the trace draws in lane 0, so the texts differ. But the
  committed token of the trace has the distribution P as well, given all before it (losslessness),
  drafts at later positions use other random numbers than the verdicts before them, and the lanes
  are alike. Each number that a replay reads has the distribution of what the engine meets in the
  same place: its counters are exact in distribution, not one by one.

What is not kept is what siblings would have drafted: only the survivor's line is on the text. It
matters in one place, ``Replay.grow_branches``, which says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ..files import read_tensors, write_safely
from ..sampling_params import check_float, check_int

FORMAT = "specbranch-trace-1"  # the key of the description in a file's metadata
LARGEST_K = 32  # ranks from here on are not told apart
_ROWS = ("accepted", "rank", "confidence", "entropy", "support", "drafted_rank", "keep")


@dataclass(frozen=True)
class Trace:
    """One request; T positions, rollouts of G tokens.

    Beyond the end of a request that is at its length limit nothing is drafted; rows are filled up
    with confidence 1, entropy 0. A request that ended early is followed a little further, since its
    last round may commit tokens behind the end.
    """

    prompt: list[int]
    tokens: list[int]  # [T] committed
    accepted: NDArray[np.int32]  # [T] leading tokens of the rollout, at most G
    rank: NDArray[np.int32]  # [T] of the committed token among the candidates, -1: LARGEST_K or up
    confidence: NDArray[np.float32]  # [T, G] largest probability of the draft's row
    entropy: NDArray[np.float32]  # [T, G] of the draft's row, nats
    support: NDArray[np.int32]  # [T, G] tokens that the cutoffs left over
    drafted_rank: NDArray[np.int32]  # [T, G] of the drafted token among the candidates
    keep: NDArray[np.int32]  # [T] H-RAD's class behind the text up to here, -1: not asked
    max_new_tokens: int
    end: int  # new tokens of the request

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def rollout(self) -> int:
        """G."""
        return int(self.confidence.shape[1])


@dataclass(frozen=True)
class Origin:
    """Where traces come from.

    Args:
        target, draft: names of the pair, for people to read.
        temperature, top_k, top_p, min_p, seed: of the requests; a request's seed is ``seed`` plus
            its number.
        verify: how drafted tokens were judged.
        prompts: their name.
        hrad: whether H-RAD's classes are in the traces.
    """

    target: str = ""
    draft: str = ""
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    verify: str = "rejection"
    prompts: str = ""
    hrad: bool = False


@dataclass(frozen=True)
class Traces:
    """Requests of one pair with the same settings."""

    requests: list[Trace]
    origin: Origin = Origin()

    @property
    def rollout(self) -> int:
        """Tokens of the shortest rollout."""
        return min(trace.rollout for trace in self.requests)

    @property
    def acceptance_rate(self) -> float:
        """Positions whose first drafted token was accepted, over all up to the requests' ends."""
        first = np.concatenate([trace.accepted[: trace.end] for trace in self.requests]) > 0
        return float(first.mean())

    def save(self, path: str | Path) -> None:
        """Write all as one safetensors file; an interruption leaves no half file behind."""
        tensors = {
            name: np.concatenate([getattr(trace, name) for trace in self.requests])
            for name in _ROWS
        }
        for name in ("tokens", "prompt"):
            lists = [getattr(trace, name) for trace in self.requests]
            tensors[name] = np.concatenate([np.asarray(each, np.int64) for each in lists])
        sizes = [
            (len(each.prompt), len(each), each.max_new_tokens, each.end) for each in self.requests
        ]
        tensors["sizes"] = np.asarray(sizes, np.int64)
        # One key, since the library writes several in no fixed order: same traces, same file.
        metadata = {FORMAT: json.dumps(asdict(self.origin))}
        write_safely(Path(path), partial(save_file, tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path) -> Traces:
        """Read what ``save`` wrote.

        Raises:
            ValueError: it is no such file.
            OSError: it cannot be read.
        """
        origin, tensors = _read(Path(path))
        try:
            return cls(_requests(tensors), Origin(**origin))
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} has damaged contents: {error}") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    metadata, tensors = read_tensors(path, "numpy")
    if FORMAT not in metadata:
        raise ValueError(f"{path} does not hold traces; specbranch plan --record makes them")
    origin: dict[str, Any] = json.loads(metadata[FORMAT])
    return origin, tensors


def _requests(tensors: dict[str, NDArray[Any]]) -> list[Trace]:
    requests: list[Trace] = []
    row, read = 0, 0
    for prompt, length, max_new_tokens, end in tensors["sizes"].tolist():
        part = slice(row, row + length)
        rows = {name: tensors[name][part] for name in _ROWS}
        found = tensors["prompt"][read : read + prompt].tolist()
        tokens = tensors["tokens"][part].tolist()
        requests.append(
            Trace(prompt=found, tokens=tokens, max_new_tokens=max_new_tokens, end=end, **rows)
        )
        row, read = row + length, read + prompt
    return requests


def run_lengths(first_accepted: Sequence[bool] | NDArray[np.bool_], most: int) -> NDArray[np.int32]:
    """For each position how many in a row, from it on, had their first token accepted."""
    lengths = np.zeros(len(first_accepted), np.int32)
    run = 0
    for idx in range(len(first_accepted) - 1, -1, -1):
        run = run + 1 if first_accepted[idx] else 0
        lengths[idx] = min(run, most)
    return lengths


def iid_trace(
    alpha: float,
    length: int,
    *,
    rollout: int = 16,
    seed: int = 0,
    confidence: float = 1.0,
    second: float = 0.0,
) -> Trace:
    """A made-up request in which each drafted token is accepted with probability ``alpha``.

    Args:
        length: new tokens.
        rollout: G.
        confidence: of all rows; ``k_max * (1 - confidence)`` branches are grown.
        second: probability that a token that is not the draft's best is its second best; else it
            is none of the candidates.
    """
    check_float("alpha", alpha, 0.0, 1.0)
    check_float("second", second, 0.0, 1.0)
    check_float("confidence", confidence, 0.0, 1.0)
    check_int("length", length, 1)
    check_int("rollout", rollout, 1)
    rng = np.random.default_rng(seed)
    hit = rng.random(length) < alpha
    other = np.where(rng.random(length) < second, 1, -1)
    shape = (length, rollout)
    return Trace(
        prompt=[0],
        tokens=rng.integers(2**31, size=length).tolist(),
        accepted=run_lengths(hit, rollout),
        rank=np.where(hit, 0, other).astype(np.int32),
        confidence=np.full(shape, confidence, np.float32),
        entropy=np.zeros(shape, np.float32),
        support=np.full(shape, 2**31 - 1, np.int32),
        drafted_rank=np.zeros(shape, np.int32),
        keep=np.full(length, -1, np.int32),
        max_new_tokens=length,
        end=length,
    )


def same(first: Trace, second: Trace) -> bool:
    """Whether two traces are equal in everything."""
    return all(
        np.array_equal(getattr(first, field.name), getattr(second, field.name))
        for field in fields(Trace)
    )
