"""References for the sampling and verification ops: float64 NumPy, written from the definitions.

They share no code with the kernels, not even Philox. Where float32 may round a decision the other
way (the uniform lies within ``TOLERANCE`` of a boundary) an oracle allows both outcomes: it returns
the *set* of allowed results, which is one element nearly always.

Temperature 0 is argmax, lowest index on ties, and ignores cutoffs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[Any]

ACCEPT, RECOVER, DRAFT, GUMBEL = 0, 1, 2, 3

#: How far float32 may move a probability, a cumulative sum or a Gumbel score.
TOLERANCE = 3e-6
SCORE_TOLERANCE = 5e-5

_LOW = 0xFFFFFFFF


def philox_words(x: list[Any], k: list[Any]) -> list[Any]:
    """Philox 4x32-10 of 4 counter and 2 key words: Python integers or uint64 arrays."""
    for _ in range(10):
        left, right = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(right >> 32) ^ x[1] ^ k[0], right & _LOW, (left >> 32) ^ x[3] ^ k[1], left & _LOW]
        k = [(k[0] + 0x9E3779B9) & _LOW, (k[1] + 0xBB67AE85) & _LOW]
    return x


def philox(counter: npt.ArrayLike, key: npt.ArrayLike) -> Ints:
    """Philox 4x32-10 of counters ``[..., 4]`` and keys ``[..., 2]``, all 32-bit words."""
    x, k = np.asarray(counter, np.uint64), np.asarray(key, np.uint64)
    words = philox_words(
        [x[..., i : i + 1] for i in range(4)], [k[..., i : i + 1] for i in range(2)]
    )
    return np.concatenate(np.broadcast_arrays(*words), axis=-1)


def _words(value: npt.ArrayLike) -> tuple[Ints, Ints]:
    bits = np.asarray(value, np.int64).astype(np.uint64)
    return bits & _LOW, bits >> 32


def _block(
    seed: npt.ArrayLike, position: npt.ArrayLike, word2: npt.ArrayLike, purpose: int
) -> Ints:
    parts = (*_words(position), np.asarray(word2, np.int64).astype(np.uint64) & _LOW)
    counter = np.stack(np.broadcast_arrays(*parts, np.uint64(purpose)), axis=-1)
    return philox(counter, np.stack(_words(seed), axis=-1))


def uniform(
    seed: npt.ArrayLike, position: npt.ArrayLike, lane: npt.ArrayLike, purpose: int
) -> Floats:
    """The uniform in [0, 1) of one draw, 53 bits."""
    block = _block(seed, position, lane, purpose).astype(np.float64)
    high, low = np.floor(block[..., 0] / 32), np.floor(block[..., 1] / 64)
    result: Floats = (high * 67108864.0 + low) / 9007199254740992.0
    return result


def uniform_at(seed: int, position: int, lane: int, purpose: int) -> float:
    """``uniform`` of Python integers."""
    counter = [position & _LOW, position >> 32 & _LOW, lane & _LOW, purpose]
    word = philox_words(counter, [seed & _LOW, seed >> 32 & _LOW])
    return float(((word[0] >> 5) << 26) + (word[1] >> 6)) / 9007199254740992


def gumbel_noise(seed: int, position: int, vocab_size: int) -> Floats:
    """The noise of every token at a position."""
    token = np.arange(vocab_size)
    chunk, within = token // 1024, token % 1024
    block = _block(seed, position, chunk * 256 + within % 256, GUMBEL)
    word = np.take_along_axis(block, (within // 256)[:, None], axis=1)[:, 0]
    result: Floats = -np.log(-np.log1p(-(word.astype(np.float64) + 0.5) / 2.0**32))
    return result


def is_bad(logits: Floats, kept: npt.NDArray[np.bool_] | None = None) -> bool:
    """A NaN or +inf logit, or no finite one that is kept."""
    if np.isnan(logits).any() or (logits == np.inf).any():
        return True
    rest = logits if kept is None else logits[kept]
    return not np.isfinite(rest).any()


def distribution(
    logits: npt.ArrayLike, temperature: float = 1.0, cutoff: float | None = None
) -> Floats | None:
    """Softmax of ``logits / temperature`` over what is kept, or one-hot; None: bad row."""
    logits = np.asarray(logits, np.float64)
    keep_all = cutoff is None or temperature == 0
    kept = np.full(logits.shape, True) if keep_all else logits >= np.float64(cutoff)
    if is_bad(logits, kept):
        return None
    masked = np.where(kept, logits, -np.inf)
    if temperature == 0:
        one_hot: Floats = (np.arange(len(logits)) == np.argmax(masked)).astype(np.float64)
        return one_hot
    weights = np.exp((masked - masked.max()) / temperature)
    result: Floats = weights / weights.sum()
    return result


def entropy(probabilities: Floats) -> float:
    """In nats."""
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log(positive)).sum())


def logit_cutoff(
    logits: npt.ArrayLike, temperature: float, top_k: int, top_p: float, min_p: float
) -> float:
    """By a full sort: the lowest logit kept by top-k, then top-p of the rest, and min-p."""
    logits = np.asarray(logits, np.float64)
    if is_bad(logits):
        return float("nan")
    if temperature == 0:
        return float(logits.max())
    cutoff = -np.inf
    ordered = np.sort(logits[np.isfinite(logits)])[::-1]
    if 0 < top_k < len(logits):
        cutoff = float(ordered[min(top_k, len(ordered)) - 1])
    if top_p < 1:
        kept = ordered[ordered >= cutoff]
        mass = np.cumsum(np.exp((kept - kept[0]) / temperature))
        reached = np.flatnonzero(mass >= top_p * mass[-1])
        cutoff = max(cutoff, float(kept[reached[0]]))
    if min_p > 0:
        cutoff = max(cutoff, float(ordered[0]) + temperature * float(np.log(min_p)))
    return cutoff


def pick(weights: Floats, u: float, tolerance: float = TOLERANCE) -> set[int]:
    """Tokens that the inverse CDF of ``weights`` (a sub-distribution) may give at ``u``."""
    upper = np.cumsum(weights)
    target = u * upper[-1]
    allowed = (weights > 0) & (upper - weights <= target + tolerance)
    return {int(token) for token in np.flatnonzero(allowed & (upper >= target - tolerance))}


def pick_gumbel(
    logits: Floats, temperature: float, cutoff: float | None, noise: Floats
) -> set[int]:
    """Tokens that ``argmax(logits / temperature + noise)`` may give."""
    kept = np.full(logits.shape, True) if cutoff is None else logits >= cutoff
    best = np.where(kept, logits - logits[kept].max(), -np.inf) / temperature + noise
    return {int(token) for token in np.flatnonzero(best >= best.max() - SCORE_TOLERANCE)}


class Request(NamedTuple):
    """What every row of one request shares."""

    temperature: float
    seed: int
    position: int
    draw: str = "inverse_cdf"


def target_tokens(
    logits: npt.ArrayLike,
    request: Request,
    offset: int,
    cutoff: float | None = None,
    *,
    lane: int = 0,
    purpose: int = RECOVER,
) -> set[int]:
    """Tokens that may be drawn ``offset`` positions on; {-1}: bad row."""
    logits = np.asarray(logits, np.float64)
    probabilities = distribution(logits, request.temperature, cutoff)
    if probabilities is None:
        return {-1}
    if request.temperature == 0:
        return {int(np.argmax(probabilities))}
    position = request.position + offset
    if request.draw == "gumbel":
        noise = gumbel_noise(request.seed, position, len(logits))
        return pick_gumbel(logits, request.temperature, cutoff, noise)
    return pick(probabilities, uniform_at(request.seed, position, lane, purpose))


def acceptances(u: float, draft: float, target: float) -> set[bool]:
    """Whether ``u * draft < target`` may hold."""
    margin = target - u * draft
    if abs(margin) <= 3e-5 * max(target, u * draft) + 1e-36 and u * draft > 0:
        return {True, False}
    return {margin > 0}


def residual(target: Floats, draft: Floats) -> Floats | None:
    """``norm(max(0, target - draft))``, or None where nothing but rounding is left."""
    weights: Floats = np.maximum(0.0, target - draft)
    mass = weights.sum()
    return weights / mass if mass > 1e-9 else None


Outcome = tuple[int, ...]


def chain_outcomes(
    target_logits: Floats,
    draft_logits: Floats | None,
    draft_tokens: Sequence[int],
    branch_tokens: Sequence[int],
    request: Request,
    target_cutoff: Sequence[float] | None = None,
    draft_cutoff: Sequence[float] | None = None,
) -> set[Outcome]:
    """Allowed (num_accepted, next_token, survivor) of one chain with its branches."""
    found: set[Outcome] = set()
    matching = request.draw == "gumbel" or request.temperature == 0
    for i, drafted in enumerate(draft_tokens):
        cut = None if target_cutoff is None else target_cutoff[i]
        if matching:
            tokens = target_tokens(target_logits[i], request, i, cut)
            going_on = drafted in tokens
            found |= {(-1, -1, -1) if t < 0 else (i, t, -1) for t in tokens - {drafted}}
        else:
            assert draft_logits is not None
            target = distribution(target_logits[i], request.temperature, cut)
            own = None if draft_cutoff is None else draft_cutoff[i]
            draft = distribution(draft_logits[i], request.temperature, own)
            if target is None or draft is None:
                return found | {(-1, -1, -1)}
            at = request.position + i
            accepted = acceptances(
                uniform_at(request.seed, at, 0, ACCEPT), draft[drafted], target[drafted]
            )
            going_on = True in accepted
            if False in accepted:
                found |= {(i, t, -1) for t in recovered([target, draft], request.seed, at)}
        if not going_on:
            return found
    m = len(draft_tokens)
    cut = None if target_cutoff is None else target_cutoff[m]
    for token in target_tokens(target_logits[m], request, m, cut):
        matches = [k for k, branch in enumerate(branch_tokens) if branch == token]
        found.add((-1, -1, -1) if token < 0 else (m, token, matches[0] if matches else -1))
    return found


def recovered(rows: list[Floats], seed: int, position: int, rounds: int = 1) -> set[int]:
    """Tokens that may be drawn after ``rounds`` rejections; ``rows`` is [target, draft]."""
    current, draft = rows
    amplification = 1.0
    for _ in range(rounds):
        mass = np.maximum(0.0, current - draft).sum()
        left = residual(current, draft)
        if left is None:
            # Whether float32 sees anything of so small a residual is open.
            amplification = np.inf if mass > 0 else amplification
            break
        current = left
        amplification /= mass
    u = uniform_at(seed, position, 0, RECOVER)
    return pick(current, u, TOLERANCE * amplification)


def tree_outcomes(
    target_logits: Floats,
    draft_logits: Floats | None,
    tokens: Sequence[int],
    parents: Sequence[int],
    sampled: Sequence[int],
    request: Request,
    target_cutoff: Sequence[float] | None = None,
    draft_cutoff: Sequence[float] | None = None,
) -> set[tuple[Outcome, int]]:
    """Allowed (path, next_token) of one tree; ((), -1): bad row."""

    def cutoff_of(cutoffs: Sequence[float] | None, row: int) -> float | None:
        return None if cutoffs is None else cutoffs[row]

    def visit(path: Outcome) -> Iterable[tuple[Outcome, int]]:
        row = path[-1] + 1 if path else 0
        children = [i for i, parent in enumerate(parents) if parent == row - 1]
        cut = cutoff_of(target_cutoff, row)
        rejection = request.draw != "gumbel" and request.temperature > 0
        if rejection and children and sampled[children[0]]:
            yield from rounds(path, row, children, cut)
            return
        for token in target_tokens(target_logits[row], request, len(path), cut):
            matches = [c for c in children if tokens[c] == token]
            if token < 0:
                yield (), -1
            elif matches:
                yield from visit((*path, matches[0]))
            else:
                yield path, token

    def rounds(
        path: Outcome, row: int, children: list[int], cut: float | None
    ) -> Iterable[tuple[Outcome, int]]:
        assert draft_logits is not None
        target = distribution(target_logits[row], request.temperature, cut)
        own = cutoff_of(draft_cutoff, row)
        draft = distribution(draft_logits[row], request.temperature, own)
        if target is None or draft is None:
            yield (), -1
            return
        current, at = target, request.position + len(path)
        for r, child in enumerate(children):
            u = uniform_at(request.seed, at, r, ACCEPT)
            accepted = acceptances(u, draft[tokens[child]], current[tokens[child]])
            if True in accepted:
                yield from visit((*path, child))
            if False not in accepted:
                return
            left = residual(current, draft)
            current = current if left is None else left
        for token in recovered([target, draft], request.seed, at, len(children)):
            yield path, token

    return set(visit(()))


# ---------------------------------------------------------------- whole steps, for statistics
Recover = Callable[[Floats, Floats, Floats], Ints]


def recover_residual(target: Floats, draft: Floats, u: Floats) -> Ints:
    """The right rule: inverse CDF of ``norm(max(0, target - draft))``."""
    return inverse_cdf(np.maximum(0.0, target - draft), u)


def recover_argmax(target: Floats, draft: Floats, u: Floats) -> Ints:
    """A wrong rule: the target's most likely token."""
    return np.full(u.shape, np.argmax(target))


def recover_target(target: Floats, draft: Floats, u: Floats) -> Ints:
    """A wrong rule: the target's own distribution."""
    return inverse_cdf(target, u)


def inverse_cdf(weights: Floats, u: Floats) -> Ints:
    """One token for each uniform."""
    cumulative = np.cumsum(weights)
    tokens: Ints = np.searchsorted(cumulative, u * cumulative[-1], side="right")
    return tokens.clip(max=len(weights) - 1)


def simulate_step(
    target: Floats, draft: Floats, rng: np.random.Generator, count: int, recover: Recover
) -> Ints:
    """``count`` tokens of speculative sampling, one drafted token each, with the given recovery."""
    drafted = inverse_cdf(draft, rng.random(count))
    accepted = rng.random(count) * draft[drafted] < target[drafted]
    return np.where(accepted, drafted, recover(target, draft, rng.random(count)))
