"""verify_tree: every walk against the float64 oracle, chains against verify, exact distributions.

Power, 100,000 steps each: testing the second sibling against the target instead of the residual is
rejected at p < 1e-6 (test_wrong_rule_is_rejected).
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
    i32,
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
    random_tree,
    softmax,
)

from specbranch import ops
from specbranch.testing import oracles_sampling as oracle
from specbranch.testing.statistics import chi_square

# B, N, V
SHAPES = [(4, 0, 3), (4, 3, 1), (30, 9, 4), (10, 7, 33), (4, 12, 1025), (2, 6, 4097), (0, 3, 5)]
CUTOFFS = ("target_cutoff", "draft_cutoff")


def check(case: dict[str, Any], got: ops.VerifyTreeResult, draw: str) -> list[int]:
    """Every walk is one that the oracle allows; returns how many it allowed."""
    sizes = []
    for b in range(len(got.num_accepted)):
        n, m = int(case["num_nodes"][b]), int(got.num_accepted[b])
        request = oracle.Request(
            float(case["temperature"][b]), int(case["seed"][b]), int(case["position"][b]), draw
        )
        allowed = oracle.tree_outcomes(
            exact(case["target_logits"][b]),
            exact(case["draft_logits"][b]),
            *(case[name][b, :n].tolist() for name in ("tokens", "parents", "sampled")),
            request,
            *(None if case.get(c) is None else case[c][b].tolist() for c in CUTOFFS),
        )
        path = got.path[b].tolist()
        length = max(m, 0)
        assert path[length:] == [-1] * (len(path) - length)
        outcome = (tuple(path[:length]), int(got.next_token[b]))
        assert outcome in allowed, f"row {b}: {outcome} not in {allowed}"
        assert (m < 0) == (outcome[1] < 0)
        sizes.append(len(allowed))
    return sizes


@one_order
@pytest.mark.parametrize("draw", ["inverse_cdf", "gumbel"])
@pytest.mark.parametrize("distance", ["same", "near", "far"])
@pytest.mark.parametrize("kind", KINDS)
def test_against_oracle(backend: str, kind: str, distance: str, draw: str) -> None:
    rng, _ = make_rng()
    sizes = []
    shapes = SHAPES[1:5] if backend == "simt" else SHAPES  # the others are slow there
    for index, (B, N, V) in enumerate(shapes):
        dtype = list(DTYPES)[int(rng.integers(3))]
        case = random_tree(rng, B, N, V, kind, distance)
        for name in ("target_logits", "draft_logits"):
            case[name] = stored(case[name], dtype)
        if index % 2:
            case |= {
                name: torch.quantile(torch.nan_to_num(case[x].float(), neginf=-1e4), 0.3, dim=2)
                for name, x in zip(CUTOFFS, ("target_logits", "draft_logits"), strict=True)
            }
        else:
            case["target_logits"] = strided(case["target_logits"])
        out = ops.VerifyTreeResult(i32([-77] * B), i32(np.full((B, N), -77)), i32([-77] * B))
        got = run_on(backend, ops.verify_tree, **case, draw=draw, out=out)
        assert got is out or backend == "cuda"
        sizes += check(case, got, draw)
    assert np.mean(np.array(sizes) == 1) > 0.8


def test_checker_sees_wrong_walks() -> None:
    rng, _ = make_rng()
    case = random_tree(rng, 40, 6, 9, "plain", "near")
    case = {k: torch.as_tensor(v) for k, v in case.items()}
    got = ops.verify_tree(**case)
    check(case, got, "inverse_cdf")
    for field in got._fields:
        with pytest.raises(AssertionError):
            check(case, got._replace(**{field: getattr(got, field) + 1}), "inverse_cdf")


@pytest.mark.parametrize("draw", ["inverse_cdf", "gumbel"])
def test_a_chain_decides_like_verify(backend: str, draw: str) -> None:
    rng, _ = make_rng()
    for V in (5, 200, 3000):
        B, G = 100 if backend == "cpu" else 10, 4
        case = {
            k: torch.as_tensor(v) for k, v in random_chain(rng, B, G, V, 0, "plain", "near").items()
        }
        wanted = ops.verify(**case, draw=draw)
        draft = torch.cat([case["draft_logits"], torch.full((B, 1, V), float("nan"))], dim=1)
        got = run_on(
            backend, ops.verify_tree, case["target_logits"], draft, case["draft_tokens"],
            i32([list(range(-1, G - 1))] * B), case["chain_length"],
            case["temperature"], case["seed"], case["position"],
            sampled=torch.ones(B, G, dtype=torch.bool), draw=draw,
        )  # fmt: skip
        assert got.num_accepted.equal(wanted.num_accepted)
        assert got.next_token.equal(wanted.next_token)


def test_deterministic_children_survive_like_branches() -> None:
    rng, _ = make_rng()
    B, K, V = 300, 4, 6
    case = {
        k: torch.as_tensor(v) for k, v in random_chain(rng, B, 0, V, K, "plain", "near").items()
    }
    wanted = ops.verify(**{**case, "num_branches": i32([K] * B)})
    got = ops.verify_tree(
        case["target_logits"].expand(B, K + 1, V), None, case["branch_tokens"],
        i32(np.full((B, K), -1)), i32([K] * B), case["temperature"], case["seed"], case["position"],
    )  # fmt: skip
    assert got.path[:, 0].equal(wanted.survivor)
    missed = wanted.survivor < 0
    assert 0 < int(missed.sum()) < B
    assert got.next_token[missed].equal(wanted.next_token[missed])


def siblings_case(
    target: Any, draft: Any, count: int, seeds: torch.Tensor
) -> tuple[dict[str, Any], torch.Tensor]:
    """A root with ``count`` siblings sampled from ``draft``."""
    B, V = len(seeds), len(target)
    drawn = [
        ops.sample(log(draft).expand(B, V), 1.0, seeds, 3, lane=i32([r]).expand(B).contiguous())
        for r in range(count)
    ]
    tokens = torch.stack([x.token for x in drawn], dim=1)
    case = {
        "target_logits": log(target).expand(B, count + 1, V),
        "draft_logits": log(draft).expand(B, count + 1, V),
        "tokens": tokens,
        "parents": torch.full((B, count), -1, dtype=torch.int32),
        "num_nodes": torch.full((B,), count, dtype=torch.int32),
        "temperature": 1.0,
        "seed": seeds,
        "position": 3,
        "sampled": torch.ones(B, count, dtype=torch.uint8),
    }
    return case, tokens


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", PAIRS)
def test_sampled_siblings_are_exact(name: str, count: int) -> None:
    rng, _ = make_rng()
    target, draft = PAIRS[name]
    case, tokens = siblings_case(target, draft, count, fresh_seeds(rng))
    got = ops.verify_tree(**case)
    taken = got.path[:, 0]
    child = tokens.gather(1, taken.clamp(min=0).long()[:, None])[:, 0]
    first = torch.where(taken >= 0, child, got.next_token)
    counts = np.bincount(first, minlength=len(target))
    assert chi_square(counts, softmax(log(target))).p_value > LEVEL
    after = got.next_token[taken >= 0]
    if len(after):
        counts = np.bincount(after, minlength=len(target))
        assert chi_square(counts, softmax(log(target))).p_value > LEVEL


def test_more_siblings_accept_more() -> None:
    rng, _ = make_rng()
    seeds = fresh_seeds(rng, 20_000)
    rates = []
    for count in (1, 2, 3):
        case, _ = siblings_case(*PAIRS["near"], count, seeds)
        rates.append(float((ops.verify_tree(**case).num_accepted > 0).float().mean()))
    assert rates[0] < rates[1] <= rates[2]


def test_wrong_rule_is_rejected() -> None:
    """The second sibling tested against the target, not against the residual."""
    rng, _ = make_rng()
    target, draft = (np.array(x) for x in PAIRS["far"])
    left = np.maximum(0, target - draft)
    left /= left.sum()

    def first_tokens(second_target: np.ndarray) -> np.ndarray:
        x, y = (oracle.inverse_cdf(draft, rng.random(COUNT)) for _ in range(2))
        last = np.maximum(0, second_target - draft)
        recovered = oracle.inverse_cdf(last, rng.random(COUNT))
        accepted_y = rng.random(COUNT) * draft[y] < second_target[y]
        rest = np.where(accepted_y, y, recovered)
        return np.where(rng.random(COUNT) * draft[x] < target[x], x, rest)

    right, wrong = (
        chi_square(np.bincount(first_tokens(rule), minlength=len(target)), target).p_value
        for rule in (left, target)
    )
    assert right > LEVEL > wrong


@pytest.mark.parametrize("bad", [np.nan, np.inf, "nothing finite"])
@pytest.mark.parametrize("sampled", [False, True])
def test_bad_rows(backend: str, bad: float | str, sampled: bool) -> None:
    """Batch row i: target row i is bad (3: the draft's row 0). The walk passes all three."""
    V = 1100
    target, draft = torch.zeros(4, 3, V), torch.zeros(4, 3, V)
    target[..., 7] = draft[..., 7] = 1000.0
    for row in (target[0, 0], target[1, 1], target[2, 2], draft[3, 0]):
        if bad == "nothing finite":
            row[:] = -np.inf
        else:
            row[1050] = bad
    got = run_on(
        backend, ops.verify_tree, target, draft, i32([[7, 7]] * 4), i32([[-1, 0]] * 4),
        i32([2] * 4), 1.0, 3, 4, sampled=torch.full((4, 2), sampled),
    )  # fmt: skip
    last = -1 if sampled else 2
    assert got.num_accepted.tolist() == [-1, -1, -1, last]
    assert got.next_token.tolist() == [-1, -1, -1, -1 if sampled else 7]
    assert got.path.tolist() == [[-1, -1]] * 3 + [[-1, -1] if sampled else [0, 1]]


@pytest.mark.parametrize("draw", ["inverse_cdf", "gumbel"])
def test_same_bits_as_cpu(backend: str, draw: str) -> None:
    if backend == "cpu":
        pytest.skip("the others are compared with it")
    rng, _ = make_rng()
    for V in SIZES * 2:
        B, N = 30 if V <= 100 else 2, int(rng.choice([0, 1, 4, 9, 40 if V <= 100 else 12]))
        kind, distance = str(rng.choice(KINDS)), str(rng.choice(["same", "near", "far"]))
        case = random_tree(rng, B, N, V, kind, distance)
        for name in ("target_logits", "draft_logits"):
            case[name] = with_bad_values(rng, case[name])
        case |= {name: random_cutoffs(rng, B, N + 1) for name in CUTOFFS}
        wanted = ops.verify_tree(**case, draw=draw)
        assert same_bits(run_on(backend, ops.verify_tree, **case, draw=draw), wanted), case


@pytest.mark.parametrize("distance", ["near", "far"])
def test_many_rejections_over_many_blocks(backend: str, distance: str) -> None:
    """Batch 1: the first residual is shared by three blocks, the ones after it are one block's."""
    rng, _ = make_rng()
    N, V = 6, 20_000
    case = random_tree(rng, 1, N, V, "plain", distance)
    case = {k: torch.as_tensor(v) for k, v in case.items()}
    case["temperature"][:] = 1.0
    case["sampled"][:] = 1
    case["num_nodes"][:] = N
    case["parents"] = i32([[-1, -1, -1, 0, 0, 1]])
    draft = case["draft_logits"]
    for i, parent in enumerate(case["parents"][0].tolist()):
        drawn = ops.sample(draft[:, parent + 1], 1.0, int(rng.integers(2**60)), i).token
        case["tokens"][:, i] = drawn
    for seed in range(4):
        case["seed"][:] = seed
        got = run_on(backend, ops.verify_tree, **case)
        assert same_bits(got, ops.verify_tree(**case))


def test_workspace() -> None:
    rng, _ = make_rng()
    case = random_tree(rng, 2, 3, 1500, "plain", "near")
    wanted = ops.verify_tree(**case)
    size = 2 * (8 * 2 * 16 + 4 * 2 * 8 + 4)  # statistics, shares, counters
    for fill in (0, 255):  # what it contains does not matter
        workspace = torch.full((size,), fill, dtype=torch.uint8)
        assert same_bits(ops.verify_tree(**case, workspace=workspace, backend="simt"), wanted)
    with pytest.raises(ValueError, match=f"workspace had {size - 1} bytes, .* at least {size}"):
        ops.verify_tree(**case, workspace=workspace[:-1], backend="simt")


GOOD: dict[str, Any] = {
    "target_logits": np.zeros((2, 4, 9), np.float32),
    "draft_logits": np.zeros((2, 4, 9), np.float32),
    "tokens": np.zeros((2, 3), np.int32),
    "parents": np.int32([[-1, -1, 0], [-1, 0, 1]]),
    "num_nodes": np.int32([3, 3]),
    "temperature": 1.0,
    "seed": 1,
    "position": 2,
    "sampled": np.uint8([[1, 1, 0], [0, 0, 1]]),
}
WRONG = [
    (dict(target_logits=np.zeros((2, 3, 9), np.float32)), ValueError, "target_logits had shape"),
    (dict(draft_logits=np.zeros((2, 3, 9), np.float32)), ValueError, "draft_logits had shape"),
    (dict(draft_logits=None), ValueError, "draft_logits was None"),
    (dict(tokens=np.full((2, 3), 9, np.int32)), ValueError, r"tokens had 9.*0\.\.8"),
    (dict(parents=np.int32([[-1, 1, 0], [-1, 0, 1]])), ValueError, r"parents had 1 at \[0, 1\]"),
    (dict(parents=np.int32([[-1, -2, 0], [-1, 0, 1]])), ValueError, r"parents had -2 at \[0, 1\]"),
    (dict(num_nodes=np.int32([4, 3])), ValueError, r"num_nodes had 4.*0\.\.3"),
    (dict(sampled=np.uint8([[1, 0, 0], [0, 0, 1]])), ValueError, "differed.*siblings 0 and 1"),
    (dict(sampled=np.zeros((2, 4), np.uint8)), ValueError, "sampled had shape"),
    (dict(temperature=-1.0), ValueError, "temperature had -1"),
    (dict(target_cutoff=np.zeros((2, 3), np.float32)), ValueError, "target_cutoff had shape"),
    (dict(draw=None), ValueError, "draw was None"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
@pytest.mark.parametrize("backend", ["cpu", "simt"])
def test_wrong_arguments(backend: str, change: dict, error: type[Exception], message: str) -> None:
    ops.verify_tree(**GOOD, backend=backend)
    with pytest.raises(error, match=message):
        ops.verify_tree(**{**GOOD, **change}, backend=backend)
