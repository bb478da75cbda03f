"""The native module, positional arguments only; `specbranch.ops` documents it."""

from types import ModuleType
from typing import Any, TypeAlias

_Tensor: TypeAlias = Any
_OptionalTensor: TypeAlias = Any | None
_Sequences: TypeAlias = list[Any]  # of tuples

probe: ModuleType  # the random source and the arithmetic, for tests

def build_info() -> dict[str, Any]: ...
def limit_threads(count: int, /) -> int: ...

# tree and cache
def tree_mask(
    parents: _Tensor,
    bits: _Tensor,
    depth: _Tensor,
    backend: str | None,
    stream: int | None,
    /,
) -> None: ...
def tree_attention(
    q: _Tensor,
    cache_layer: _Tensor,
    prefix_length: _Tensor,
    ancestor_bits: _OptionalTensor,
    scale: float,
    out: _Tensor,
    workspace: _OptionalTensor,
    backend: str | None,
    stream: int | None,
    /,
) -> None: ...
def tree_attention_workspace_bytes(q: _Tensor, cache_layer: _Tensor, /) -> int: ...
def kv_write(
    key: _Tensor,
    value: _Tensor,
    slots: _Tensor,
    cache_layer: _Tensor,
    backend: str | None,
    stream: int | None,
    /,
) -> None: ...
def kv_commit(
    cache: _Tensor,
    source_slots: _Tensor,
    dst_start: _Tensor,
    length: _Tensor,
    backend: str | None,
    stream: int | None,
    /,
) -> None: ...
def advance(*arguments: Any) -> None: ...  # in the order of specbranch/ops/rounds.py
def stopwatch(times: _Tensor, start: bool, backend: str | None, stream: int | None, /) -> None: ...

# around the matrix products
def rope_kv_write(
    qkv: _Tensor,
    cos_table: _Tensor,
    sin_table: _Tensor,
    positions: _Tensor,
    slots: _Tensor,
    cache_layer: _Tensor,
    num_q_heads: int,
    q_norm: _OptionalTensor,
    k_norm: _OptionalTensor,
    eps: float,
    out: _Tensor,
    backend: str | None,
    stream: int | None,
    /,
) -> None: ...
def add_rms_norm(
    residual: _Tensor,
    weight: _Tensor,
    delta: _OptionalTensor,
    eps: float,
    out: _Tensor,
    backend: str | None,
    stream: int | None,
    /,
) -> None: ...
def silu_mul(
    gate_up: _Tensor, out: _Tensor, backend: str | None, stream: int | None, /
) -> None: ...
def linear(x: _Tensor, weight: _Tensor, bias: _OptionalTensor, out: _Tensor, /) -> None: ...

class Decoder:
    def __init__(
        self,
        layers: list[tuple[Any, ...]],
        final_norm: _Tensor,
        cos_table: _Tensor,
        sin_table: _Tensor,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        inner_size: int,
        eps: float,
        /,
    ) -> None: ...
    def forward(
        self,
        residual: _Tensor,
        cache: _Tensor,
        positions: _Tensor,
        slots: _Tensor,
        prefix_length: _Tensor,
        ancestor_bits: _OptionalTensor,
        scale: float,
        hidden: _OptionalTensor,
        out: _Tensor,
        /,
    ) -> None: ...

# sampling and verification
def logit_cutoff(
    logits: _Tensor,
    temperature: _Tensor,
    top_k: _Tensor,
    top_p: _Tensor,
    min_p: _Tensor,
    cutoff: _Tensor,
    backend: str | None,
    stream: int | None,
    /,
) -> None: ...
def sample(
    logits: _Tensor,
    temperature: _Tensor,
    seed: _Tensor,
    position: _Tensor,
    cutoff: _OptionalTensor,
    lane: _OptionalTensor,
    gumbel: bool,
    purpose: int,
    token: _Tensor,
    probability: _Tensor,
    max_probability: _Tensor,
    entropy: _Tensor,
    backend: str | None,
    stream: int | None,
    /,
) -> None: ...
def branch_topk(
    logits: _Tensor,
    temperature: _Tensor,
    cutoff: _OptionalTensor,
    seed: _OptionalTensor,
    position: _OptionalTensor,
    gumbel: bool,
    candidates: _Tensor,
    num_branches: _Tensor,
    confidence: _Tensor,
    backend: str | None,
    stream: int | None,
    /,
) -> None: ...
def verify(
    target_logits: _Tensor,
    draft_logits: _OptionalTensor,
    draft_tokens: _Tensor,
    chain_length: _Tensor,
    branch_tokens: _Tensor,
    num_branches: _Tensor,
    temperature: _Tensor,
    seed: _Tensor,
    position: _Tensor,
    target_cutoff: _OptionalTensor,
    draft_cutoff: _OptionalTensor,
    gumbel: bool,
    num_accepted: _Tensor,
    next_token: _Tensor,
    survivor: _Tensor,
    workspace: _OptionalTensor,
    backend: str | None,
    stream: int | None,
    /,
) -> None: ...
def verify_workspace_bytes(B: int, G: int, V: int, gumbel: bool, /) -> int: ...
def verify_tree(
    target_logits: _Tensor,
    draft_logits: _OptionalTensor,
    tokens: _Tensor,
    parents: _Tensor,
    num_nodes: _Tensor,
    temperature: _Tensor,
    seed: _Tensor,
    position: _Tensor,
    sampled: _OptionalTensor,
    target_cutoff: _OptionalTensor,
    draft_cutoff: _OptionalTensor,
    gumbel: bool,
    num_accepted: _Tensor,
    path: _Tensor,
    next_token: _Tensor,
    workspace: _OptionalTensor,
    backend: str | None,
    stream: int | None,
    /,
) -> None: ...
def verify_tree_workspace_bytes(B: int, N: int, V: int, gumbel: bool, /) -> int: ...

class Drafter:
    def __init__(
        self,
        decoder: Decoder,
        embedding: _Tensor,
        head: _Tensor,
        head_bias: _OptionalTensor,
        scale: float,
        /,
    ) -> None: ...
    def forward(
        self,
        cache: _Tensor,
        tokens: _Tensor,
        positions: _Tensor,
        slots: _Tensor,
        prefix_length: _Tensor,
        ancestor_bits: _OptionalTensor,
        hidden: _OptionalTensor,
        out: _Tensor,
        /,
    ) -> None: ...
    def forward_batch(
        self,
        sequences: _Sequences,
        tokens: _Tensor,
        hidden: _OptionalTensor,
        out: _Tensor,
        /,
    ) -> None: ...
    def draft(
        self,
        cache: _Tensor,
        tokens: _Tensor,
        prefix: int,
        branches: int,
        steps: int,
        gumbel: bool,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        seed: int,
        position: int,
        stop_below: float,
        logits: _Tensor,
        cutoff: _Tensor,
        drawn: _Tensor,
        confidence: _Tensor,
        /,
    ) -> int: ...
    def draft_batch(self, sequences: _Sequences, /) -> list[int]: ...
