"""verify: every decision against the float64 oracle, and the exact output distribution.

Power of the statistical tests, 100,000 steps each: argmax in place of residual sampling and a
residual drawn from the target itself are rejected at p < 1e-6 (test_wrong_rules_are_rejected).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ops.row_cases import (
    DTYPES,
    KINDS,
    SIZES,
    exact,
    f32,
    i32,
    i64,
    make_rng,
    one_order,
    random_cutoffs,
    run_on,
    same_bits,
    stored,
    strided,
    with_bad_values,
)
from ops.verify_cases import (
    COUNT,
    LEVEL,
    PAIRS,
    fresh_seeds,
    log,
    random_chain,
    softmax,
)

from specbranch import ops
from specbranch.testing import oracles_sampling as oracle
from specbranch.testing.statistics import chi_square

# B, G, V, K
SHAPES = [
    (5, 0, 1, 0), (5, 2, 1, 1), (40, 4, 5, 3), (20, 3, 33, 1), (6, 5, 1025, 4), (4, 8, 4097, 6),
    (2, 3, 32000, 2), (0, 3, 7, 2),
]  # fmt: skip


def allowed_outcomes(case: dict[str, Any], b: int, draw: str) -> set[oracle.Outcome]:
    m, k = int(case["chain_length"][b]), int(case["num_branches"][b])
    request = oracle.Request(
        float(case["temperature"][b]), int(case["seed"][b]), int(case["position"][b]), draw
    )
    draft = case["draft_logits"]
    return oracle.chain_outcomes(
        exact(case["target_logits"][b]),
        None if draft is None else exact(draft[b]),
        case["draft_tokens"][b, :m].tolist(),
        case["branch_tokens"][b, :k].tolist(),
        request,
        *(None if case.get(c) is None else case[c][b].tolist() for c in CUTOFFS),
    )


CUTOFFS = ("target_cutoff", "draft_cutoff")


def check(case: dict[str, Any], got: ops.VerifyResult, draw: str) -> list[int]:
    """Every row's outcome is one that the oracle allows; returns how many it allowed."""
    sizes = []
    for b in range(len(got.num_accepted)):
        outcome = tuple(int(x[b]) for x in got)
        allowed = allowed_outcomes(case, b, draw)
        assert outcome in allowed, f"row {b}: {outcome} not in {allowed}"
        sizes.append(len(allowed))
    return sizes


def with_cutoffs(case: dict[str, Any]) -> dict[str, Any]:
    """Top-5 on both models."""
    cut = {}
    for name, logits in zip(CUTOFFS, ("target_logits", "draft_logits"), strict=True):
        x = case[logits]
        rows = x.shape[1]
        temperature = case["temperature"].repeat_interleave(rows)
        flat = ops.logit_cutoff(x.reshape(-1, x.shape[2]), temperature, 5)
        cut[name] = flat.reshape(x.shape[0], rows)
    return {**case, **cut}


@one_order
@pytest.mark.parametrize("draw", ["inverse_cdf", "gumbel"])
@pytest.mark.parametrize("distance", ["same", "near", "far"])
@pytest.mark.parametrize("kind", KINDS)
def test_against_oracle(backend: str, kind: str, distance: str, draw: str) -> None:
    rng, _ = make_rng()
    sizes = []
    shapes = SHAPES[2:6] if backend.startswith("simt") else SHAPES  # the others are slow there
    for index, (B, G, V, K) in enumerate(shapes):
        dtype = list(DTYPES)[int(rng.integers(3))]
        case = random_chain(rng, B, G, V, K, kind, distance)
        for name in ("target_logits", "draft_logits"):
            case[name] = stored(case[name], dtype)
        if index % 2:
            case = with_cutoffs(case)
        if index % 3 == 0:
            case["target_logits"] = strided(case["target_logits"])
        out = ops.VerifyResult(*(i32([-77] * B) for _ in range(3)))
        given = {**case, "draft_logits": None} if draw == "gumbel" else case
        got = run_on(backend, ops.verify, **given, draw=draw, out=out)
        assert got is out or backend == "cuda"
        sizes += check(case, got, draw)
    assert np.mean(np.array(sizes) == 1) > 0.8  # the oracle is rarely in doubt


def test_checker_sees_wrong_outcomes() -> None:
    rng, _ = make_rng()
    case = random_chain(rng, 40, 3, 50, 3, "plain", "near")
    case = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in case.items()}
    got = ops.verify(**case)
    check(case, got, "inverse_cdf")
    for field in got._fields:
        with pytest.raises(AssertionError):
            check(case, got._replace(**{field: getattr(got, field) + 1}), "inverse_cdf")


def test_numpy_in_numpy_out() -> None:
    rng, _ = make_rng()
    case = random_chain(rng, 6, 2, 40, 2, "plain", "near")
    got = ops.verify(**{k: np.asarray(v) for k, v in case.items()})
    assert all(isinstance(x, np.ndarray) and x.dtype == np.int32 for x in got)
    torch_case = {k: torch.as_tensor(v) for k, v in case.items()}
    assert all(np.array_equal(x, y) for x, y in zip(got, ops.verify(**torch_case), strict=True))


def chain_of(
    pairs: list[tuple[Any, Any]], last: Any, seeds: torch.Tensor, temperature: float = 1.0
) -> tuple[dict[str, Any], torch.Tensor]:
    """A chain with these (target, draft) rows, drafted by ops.sample, one batch row a seed."""
    B, position = len(seeds), 11
    target = torch.stack([log(p) for p, _ in pairs] + [log(last)])
    draft = torch.stack([log(q) for _, q in pairs])
    G, V = draft.shape
    drafted = [
        ops.sample(draft[i].expand(B, V), temperature, seeds, position + i).token for i in range(G)
    ]
    tokens = torch.stack(drafted, dim=1)
    case = {
        "target_logits": target.expand(B, G + 1, V),
        "draft_logits": draft.expand(B, G, V),
        "draft_tokens": tokens,
        "chain_length": i32([G]).expand(B).contiguous(),
        "branch_tokens": i32([[0, 2, 0]]).expand(B, 3).contiguous(),
        "num_branches": i32([3]).expand(B).contiguous(),
        "temperature": temperature,
        "seed": seeds,
        "position": position,
    }
    return case, tokens


@pytest.mark.parametrize("name", PAIRS)
def test_first_token_and_branch_point_are_exact(name: str) -> None:
    rng, _ = make_rng()
    target, draft = PAIRS[name]
    pairs = [(target, draft), (PAIRS["near"] if len(target) == 5 else (target, target))]
    last = target[::-1]
    case, tokens = chain_of(pairs, last, fresh_seeds(rng))
    got = ops.verify(**case)
    V, m = len(target), got.num_accepted
    first = torch.where(m > 0, tokens[:, 0], got.next_token)
    assert chi_square(np.bincount(first, minlength=V), softmax(log(target))).p_value > LEVEL
    # The second token, where there is one, is independent of the first.
    second = torch.where(m > 1, tokens[:, 1], got.next_token)[m > 0]
    if len(second):
        wanted = softmax(log(pairs[1][0]))
        assert chi_square(np.bincount(second, minlength=V), wanted).p_value > LEVEL
    y = got.next_token[m == 2]
    if len(y):
        assert chi_square(np.bincount(y, minlength=V), softmax(log(last))).p_value > LEVEL
        survivor = torch.tensor([0, -1, 1] + [-1] * (V - 3))[y.long()]
        assert got.survivor[m == 2].equal(survivor.int())
    assert bool((got.survivor[m < 2] == -1).all())


@pytest.mark.parametrize("name", ["near", "far", "flat draft"])
def test_acceptance_rate_is_the_optimum(name: str) -> None:
    rng, _ = make_rng()
    target, draft = (np.array(x) for x in PAIRS[name])
    case, _ = chain_of([(target, draft)], target, fresh_seeds(rng))
    accepted = int(ops.verify(**case).num_accepted.sum())
    rate = np.minimum(target, draft).sum()
    assert abs(accepted - COUNT * rate) < 5.5 * np.sqrt(COUNT * rate * (1 - rate))


@pytest.mark.parametrize("name", ["near", "far", "holes"])
def test_wrong_rules_are_rejected(name: str) -> None:
    rng, _ = make_rng()
    target, draft = (np.array(x) for x in PAIRS[name])
    p_values = {
        rule.__name__: chi_square(
            np.bincount(
                oracle.simulate_step(target, draft, rng, COUNT, rule), minlength=len(target)
            ),
            target,
        ).p_value
        for rule in (oracle.recover_residual, oracle.recover_argmax, oracle.recover_target)
    }
    assert p_values["recover_residual"] > LEVEL
    assert p_values["recover_argmax"] < LEVEL
    assert p_values["recover_target"] < LEVEL


def test_without_a_chain_it_is_sample() -> None:
    rng, _ = make_rng()
    logits, seed = f32(rng.standard_normal((64, 3000))), i64(rng.integers(2**62, size=64))
    for draw in ("inverse_cdf", "gumbel"):
        for temperature in (0.0, 0.9):
            got = ops.verify(
                logits[:, None], None, i32(np.zeros((64, 0))), i32([0] * 64),
                i32(np.zeros((64, 0))), i32([0] * 64), temperature, seed, 5, draw=draw,
            )  # fmt: skip
            wanted = ops.sample(
                logits, temperature, seed, 5, draw=draw, purpose=ops.PURPOSE_RECOVER
            )
            assert got.next_token.equal(wanted.token)


def test_coupled_commits_what_the_target_alone_draws() -> None:
    rng, _ = make_rng()
    B, G, V = 200, 4, 50
    target = f32(rng.standard_normal((B, G + 1, V)))
    draft = target[:, :G] + 0.5 * f32(rng.standard_normal((B, G, V)))
    seed, at = i64(range(B)), 3
    rows = [ops.sample(draft[:, i], 1.0, seed, at + i, draw="gumbel").token for i in range(G)]
    alone = [ops.sample(target[:, i], 1.0, seed, at + i, draw="gumbel").token for i in range(G + 1)]
    drafted, alone = torch.stack(rows, 1), torch.stack(alone, 1)
    got = ops.verify(
        target, None, drafted, i32([G] * B), i32(np.zeros((B, 0))), i32([0] * B), 1.0, seed, at,
        draw="gumbel",
    )  # fmt: skip
    assert 0 < float((got.num_accepted > 0).float().mean()) < 1
    for b in range(B):
        m = int(got.num_accepted[b])
        assert drafted[b, :m].equal(alone[b, :m]) and got.next_token[b] == alone[b, m]


@pytest.mark.parametrize("draw", ["inverse_cdf", "gumbel"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf, "nothing finite"])
def test_bad_rows(backend: str, bad: float | str, temperature: float, draw: str) -> None:
    """Row i of the batch is bad at position i of the target; 3 and 4: of the draft."""
    V = 1100
    target, draft = torch.zeros(5, 3, V), torch.zeros(5, 2, V)
    target[..., 7] = draft[..., 7] = 1000.0
    for row in (target[0, 0], target[1, 1], target[2, 2], draft[3, 0], draft[4, 1]):
        if bad == "nothing finite":
            row[:] = -np.inf
        else:
            row[1050] = bad
    got = run_on(
        backend, ops.verify, target, draft, i32([[7, 7]] * 5), i32([2] * 5), i32([[7]] * 5),
        i32([1] * 5), temperature, 3, 4, draw=draw,
    )  # fmt: skip
    draft_is_read = draw == "inverse_cdf" and temperature > 0
    wanted = [-1, -1, -1, -1, -1] if draft_is_read else [-1, -1, -1, 2, 2]
    assert got.num_accepted.tolist() == wanted
    assert got.next_token.tolist() == [-1 if m < 0 else 7 for m in wanted]
    assert got.survivor.tolist() == [-1 if m < 0 else 0 for m in wanted]


def test_rows_behind_a_rejection_do_not_matter(backend: str) -> None:
    target, draft = torch.zeros(1, 3, 9), torch.zeros(1, 2, 9)
    target[0, 0, 5], draft[0, 0, 2] = 1000.0, 1000.0
    target[0, 1:], draft[0, 1:] = np.nan, np.nan
    got = run_on(
        backend, ops.verify,
        target, draft, i32([[2, 1]]), i32([2]), i32(np.zeros((1, 0))), i32([0]), 1.0, 3, 4,
    )  # fmt: skip
    assert [int(x) for x in got] == [0, 5, -1]


def test_a_token_the_draft_could_not_give(backend: str) -> None:
    """q = 0: accepted iff the target can give it; neither can: the target's own draw."""
    target = log([0.5, 0.0, 0.5]).expand(300, 2, 3)
    draft = log([0.0, 0.0, 1.0]).expand(300, 1, 3)
    seed = i64(range(300))
    none = (i32(np.zeros((300, 0))), i32([0] * 300), 1.0, seed, 4)
    possible = run_on(backend, ops.verify, target, draft, i32([[0]] * 300), i32([1] * 300), *none)
    assert bool((possible.num_accepted == 1).all())
    impossible = run_on(backend, ops.verify, target, draft, i32([[1]] * 300), i32([1] * 300), *none)
    assert bool((impossible.num_accepted == 0).all())
    assert bool((impossible.next_token == 0).all())
    same = run_on(
        backend, ops.verify, target, target[:, :1], i32([[1]] * 300), i32([1] * 300), *none
    )
    assert bool((same.num_accepted == 0).all()) and set(same.next_token.tolist()) == {0, 2}


@pytest.mark.parametrize("draw", ["inverse_cdf", "gumbel"])
def test_same_bits_as_cpu(backend: str, draw: str) -> None:
    if backend == "cpu":
        pytest.skip("the others are compared with it")
    rng, _ = make_rng()
    for V in SIZES * 2:
        B, G, K = 60 if V <= 100 else 3, int(rng.choice([0, 1, 4, 9])), int(rng.integers(4))
        kind, distance = str(rng.choice(KINDS)), str(rng.choice(["same", "near", "far"]))
        case = random_chain(rng, B, G, V, K, kind, distance)
        for name in ("target_logits", "draft_logits"):
            case[name] = with_bad_values(rng, case[name])
        case["target_cutoff"] = random_cutoffs(rng, B, G + 1)
        case["draft_cutoff"] = random_cutoffs(rng, B, G)
        wanted = ops.verify(**case, draw=draw)
        assert same_bits(run_on(backend, ops.verify, **case, draw=draw), wanted), case


@pytest.mark.parametrize("draw", ["inverse_cdf", "gumbel"])
@pytest.mark.parametrize("batch", [1, 40, 200])
def test_however_many_blocks_share_the_work(backend: str, batch: int, draw: str) -> None:
    """Batch 1 spreads a row of 20 chunks over three blocks, batch 200 gives each row one."""
    rng, _ = make_rng()
    V = 20_000 if batch == 1 else 9_000 if batch == 40 else 40
    for seed in range(6 if batch == 1 else 1):
        case = random_chain(rng, batch, 2, V, 2, "plain", "near")
        case = {k: torch.as_tensor(v) for k, v in case.items()}
        case["temperature"][:] = 1.0
        case["seed"] += seed
        got = run_on(backend, ops.verify, **case, draw=draw)
        assert same_bits(got, ops.verify(**case, draw=draw))


def test_workspace() -> None:
    rng, _ = make_rng()
    case = random_chain(rng, 2, 3, 1500, 2, "plain", "near")
    wanted = ops.verify(**case)
    size = 2 * (7 * 2 * 16 + 4 * 2 * 8 + 4)  # statistics, shares, counters
    for fill in (0, 255):  # what it contains does not matter
        workspace = torch.full((size,), fill, dtype=torch.uint8)
        assert same_bits(ops.verify(**case, workspace=workspace, backend="simt"), wanted)
    with pytest.raises(ValueError, match=f"workspace had {size - 1} bytes, .* at least {size}"):
        ops.verify(**case, workspace=workspace[:-1], backend="simt")
    unaligned = torch.zeros(size + 1, dtype=torch.uint8)[1:]
    with pytest.raises(ValueError, match="workspace was not aligned"):
        ops.verify(**case, workspace=unaligned, backend="simt")
    assert same_bits(ops.verify(**case, workspace=workspace[:1], backend="cpu"), wanted)


GOOD: dict[str, Any] = {
    "target_logits": np.zeros((2, 4, 9), np.float32),
    "draft_logits": np.zeros((2, 3, 9), np.float32),
    "draft_tokens": np.zeros((2, 3), np.int32),
    "chain_length": np.int32([3, 0]),
    "branch_tokens": np.zeros((2, 2), np.int32),
    "num_branches": np.int32([2, 1]),
    "temperature": 1.0,
    "seed": 1,
    "position": 2,
}
WRONG = [
    (dict(target_logits=np.zeros((2, 9), np.float32)), ValueError, r"target_logits had shape"),
    (dict(target_logits=np.zeros((2, 3, 9), np.float32)), ValueError, r"target_logits had shape"),
    (dict(target_logits=np.zeros((2, 4, 8), np.float32)), ValueError, "draft_logits had shape"),
    (dict(draft_logits=None), ValueError, "draft_logits was None"),
    (dict(draft_tokens=np.full((2, 3), 9, np.int32)), ValueError, r"draft_tokens had 9.*0\.\.8"),
    (dict(draft_tokens=np.full((2, 3), -1, np.int32)), ValueError, "draft_tokens had -1"),
    (dict(draft_tokens=np.zeros((2, 3), np.int64)), TypeError, "draft_tokens had dtype int64"),
    (dict(chain_length=np.int32([4, 0])), ValueError, r"chain_length had 4.*0\.\.3"),
    (dict(chain_length=np.int32([-1, 0])), ValueError, "chain_length had -1"),
    (dict(branch_tokens=np.full((2, 2), 9, np.int32)), ValueError, "branch_tokens had 9"),
    (dict(num_branches=np.int32([3, 0])), ValueError, r"num_branches had 3.*0\.\.2"),
    (dict(temperature=-1.0), ValueError, "temperature had -1"),
    (dict(target_cutoff=np.zeros((2, 3), np.float32)), ValueError, "target_cutoff had shape"),
    (dict(draft_cutoff=np.zeros((2, 4), np.float32)), ValueError, "draft_cutoff had shape"),
    (dict(draw="argmax"), ValueError, "draw was"),
    (dict(out=(np.zeros(2, np.int64),) * 3), TypeError, "out.num_accepted had dtype int64"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
@pytest.mark.parametrize("backend", ["cpu", "simt"])
def test_wrong_arguments(backend: str, change: dict, error: type[Exception], message: str) -> None:
    ops.verify(**GOOD, backend=backend)
    with pytest.raises(error, match=message):
        ops.verify(**{**GOOD, **change}, backend=backend)


def test_tokens_beyond_the_lengths_are_not_looked_at() -> None:
    case = {**GOOD, "chain_length": np.int32([0, 0]), "num_branches": np.int32([0, 0])}
    junk = np.full((2, 3), -5, np.int32)
    ops.verify(**{**case, "draft_tokens": junk, "branch_tokens": junk})
