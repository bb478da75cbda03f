"""Drawing from rows of logits: ``logit_cutoff``, ``sample``, ``branch_topk``.

The transformed distribution of a row is ``softmax(logits / temperature)`` over the logits that are
not below the row's cutoff. Temperature 0 is argmax, lowest index on ties; probabilities, entropy
and confidence are then those of temperature 1 with nothing cut. Every draw is a pure function of
(seed, position, lane or token, purpose), by Philox 4x32-10, and has the same bits on every backend
and for every number of threads.

Logits are float32, bfloat16 or float16 with a contiguous last dimension; per-row parameters are
arrays of ``[B]`` (or one Python number for all rows): temperature and cutoff float32, seed and
position int64, lane int32. A row with a NaN or +inf logit, or with nothing but -inf, is reported
and never sampled. Wrong types raise ``TypeError``, wrong shapes and values ``ValueError``.
"""

from __future__ import annotations

from typing import NamedTuple

from .. import _C
from ._common import Backend, TensorLike, new, shape_of
from ._rows import is_gumbel, rows

PURPOSE_ACCEPT, PURPOSE_RECOVER, PURPOSE_DRAFT, PURPOSE_GUMBEL = 0, 1, 2, 3


class SampleResult(NamedTuple):
    """What ``sample`` returns; token -1 (and NaN elsewhere) marks a bad row."""

    token: TensorLike  # [B] int32
    probability: TensorLike  # [B] float32, of the token
    max_probability: TensorLike  # [B] float32
    entropy: TensorLike  # [B] float32, nats


class BranchResult(NamedTuple):
    """What ``branch_topk`` returns; 0 branches (and NaN confidence) mark a bad row."""

    candidates: TensorLike  # [B, K] int32, best first, -1 beyond num_branches
    num_branches: TensorLike  # [B] int32
    confidence: TensorLike  # [B] float32


def logit_cutoff(
    logits: TensorLike,
    temperature: TensorLike | float,
    top_k: TensorLike | int = 0,
    top_p: TensorLike | float = 1.0,
    min_p: TensorLike | float = 0.0,
    *,
    out: TensorLike | None = None,
    backend: Backend | None = None,
    stream: int | None = None,
) -> TensorLike:
    """The smallest logit to keep in each row ``[B]``, float32: -inf where nothing is cut.

    ``logits [B, V]``. Keeps the ``top_k`` largest logits (int32, 0: all; equals of the last are
    kept too), of these the smallest set that holds at least ``top_p`` of their mass (in (0, 1]),
    and of these the tokens with at least ``min_p`` times the largest probability (in [0, 1]). At
    temperature 0 the cutoff is the maximum; for a bad row it is NaN. ``backend`` and ``stream``: as
    for ``kv_commit``.
    """
    if out is None:
        out = new(logits, shape_of(logits, "logits", "[B, V]")[:1], "float32")
    _C.logit_cutoff(
        logits,
        rows("temperature", temperature, logits, "float32"),
        rows("top_k", top_k, logits, "int32"),
        rows("top_p", top_p, logits, "float32"),
        rows("min_p", min_p, logits, "float32"),
        out,
        backend,
        stream,
    )
    return out


def sample(
    logits: TensorLike,
    temperature: TensorLike | float,
    seed: TensorLike | int,
    position: TensorLike | int,
    *,
    cutoff: TensorLike | None = None,
    lane: TensorLike | None = None,
    draw: str = "inverse_cdf",
    purpose: int = PURPOSE_DRAFT,
    out: SampleResult | tuple[TensorLike, ...] | None = None,
    backend: Backend | None = None,
    stream: int | None = None,
) -> SampleResult:
    """Draw one token from each row of ``logits [B, V]``.

    ``position [B]`` is the absolute position of the token to be drawn; ``lane [B]`` separates
    branches that draw at one position. ``draw="inverse_cdf"`` uses one uniform a row, tokens in
    index order; ``draw="gumbel"`` takes the argmax of ``logits / temperature`` plus Gumbel noise
    that depends on (seed, position, token) only, whatever lane and purpose say: the coupled mode.
    ``backend`` and ``stream``: as for ``kv_commit``; on "cuda" all arguments are on the device,
    and temperatures are not checked.
    """
    if out is None:
        batch = shape_of(logits, "logits", "[B, V]")[:1]
        floats = [new(logits, batch, "float32") for _ in range(3)]
        out = SampleResult(new(logits, batch, "int32"), *floats)
    result = out if isinstance(out, SampleResult) else SampleResult(*out)
    _C.sample(
        logits,
        rows("temperature", temperature, logits, "float32"),
        rows("seed", seed, logits, "int64"),
        rows("position", position, logits, "int64"),
        cutoff,
        lane,
        is_gumbel(draw),
        purpose,
        *result,
        backend,
        stream,
    )
    return result


def branch_topk(
    logits: TensorLike,
    k_max: int,
    temperature: TensorLike | float,
    *,
    cutoff: TensorLike | None = None,
    seed: TensorLike | int | None = None,
    position: TensorLike | int | None = None,
    draw: str = "inverse_cdf",
    out: BranchResult | tuple[TensorLike, ...] | None = None,
    backend: Backend | None = None,
    stream: int | None = None,
) -> BranchResult:
    """The candidates of a branch point (SpecBranch, arXiv 2506.01979).

    The best ``max(1, floor(k_max * (1 - confidence)))`` tokens of each row of ``logits [B, V]``,
    best first, lowest index first among equals; confidence is the row's largest probability. There
    are fewer where fewer tokens are above the cutoff, and none where ``k_max`` is 0. With
    ``draw="gumbel"`` (``seed`` and ``position`` needed) "best" includes the noise that the target
    will draw with. ``backend`` and ``stream``: as for ``kv_commit``.
    """
    if not isinstance(k_max, int) or k_max < 0:
        raise ValueError(f"k_max was {k_max!r}, must be an integer >= 0")
    if out is None:
        batch = shape_of(logits, "logits", "[B, V]")[:1]
        out = BranchResult(
            new(logits, (*batch, k_max), "int32"),
            new(logits, batch, "int32"),
            new(logits, batch, "float32"),
        )
    elif tuple(out[0].shape[1:]) != (k_max,):
        raise ValueError(f"out.candidates had shape {list(out[0].shape)}, must be [B, {k_max}]")
    candidates, num_branches, confidence = out
    _C.branch_topk(
        logits,
        rows("temperature", temperature, logits, "float32"),
        cutoff,
        rows("seed", seed, logits, "int64"),
        rows("position", position, logits, "int64"),
        is_gumbel(draw),
        candidates,
        num_branches,
        confidence,
        backend,
        stream,
    )
    return out if isinstance(out, BranchResult) else BranchResult(*out)
