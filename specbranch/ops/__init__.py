"""One documented function per kernel. Inputs are torch tensors, NumPy arrays or DLPack objects.

Outputs are torch tensors where the first input is one, else NumPy arrays; every op that makes a
tensor takes `out=` and then allocates nothing. Sums are float32 or wider whatever the input dtype.
"""

from specbranch import _C
from specbranch.ops._common import Backend
from specbranch.ops.attention import (
    TreeMask,
    dense_mask,
    tree_attention,
    tree_attention_workspace,
    tree_mask,
)
from specbranch.ops.cache import kv_commit, kv_write
from specbranch.ops.decoder import (
    Decoder,
    DecoderSequence,
    Drafter,
    DraftSequence,
    LayerTensors,
)
from specbranch.ops.layers import (
    add_rms_norm,
    linear,
    pack_weight,
    pack_weight_int8,
    quantise_int8,
    rope_kv_write,
    silu_mul,
)
from specbranch.ops.rounds import RoundState, advance, stopwatch
from specbranch.ops.sampling import (
    PURPOSE_ACCEPT,
    PURPOSE_DRAFT,
    PURPOSE_GUMBEL,
    PURPOSE_RECOVER,
    BranchResult,
    SampleResult,
    branch_topk,
    logit_cutoff,
    sample,
)
from specbranch.ops.verify import VerifyResult, VerifyTreeResult, verify, verify_tree

__all__ = [
    "PURPOSE_ACCEPT",
    "PURPOSE_DRAFT",
    "PURPOSE_GUMBEL",
    "PURPOSE_RECOVER",
    "Backend",
    "BranchResult",
    "Decoder",
    "DecoderSequence",
    "DraftSequence",
    "Drafter",
    "LayerTensors",
    "RoundState",
    "SampleResult",
    "TreeMask",
    "VerifyResult",
    "VerifyTreeResult",
    "add_rms_norm",
    "advance",
    "backends",
    "branch_topk",
    "dense_mask",
    "kv_commit",
    "kv_write",
    "limit_threads",
    "linear",
    "logit_cutoff",
    "pack_weight",
    "pack_weight_int8",
    "quantise_int8",
    "rope_kv_write",
    "sample",
    "silu_mul",
    "stopwatch",
    "tree_attention",
    "tree_attention_workspace",
    "tree_mask",
    "verify",
    "verify_tree",
]


class limit_threads:
    """Inside, CPU ops called from this very thread use at most ``count`` threads; 0: all cores.

    Torch's own setting is another: it is the whole process's, and the ops do not look at it.
    """

    # Not a generator: it is entered each round, with the caches full of weights, and short code is
    # read from memory sooner.
    __slots__ = ("_before", "_count")

    def __init__(self, count: int) -> None:
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"count was {count!r}, must be an integer >= 0")
        self._count = count

    def __enter__(self) -> None:
        self._before = _C.limit_threads(self._count)

    def __exit__(self, *error: object) -> None:
        _C.limit_threads(self._before)


def backends() -> dict[str, bool]:
    """Which backends this build contains: "cpu", "simt" (emulated CUDA kernels), "cuda"."""
    return {"cpu": True, "simt": True, "cuda": bool(_C.build_info()["cuda"])}
