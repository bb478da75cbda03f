"""One documented function per kernel. Inputs are torch tensors, NumPy arrays or DLPack objects.

Outputs are torch tensors where the first input is one, else NumPy arrays; every op that makes a
tensor takes `out=` and then allocates nothing. Sums are float32 or wider whatever the input dtype.
"""

from specbranch import _C
from specbranch.ops.attention import TreeMask, dense_mask, tree_attention, tree_mask
from specbranch.ops.cache import kv_commit, kv_write
from specbranch.ops.layers import add_rms_norm, rope_kv_write, silu_mul

__all__ = [
    "TreeMask",
    "add_rms_norm",
    "backends",
    "dense_mask",
    "kv_commit",
    "kv_write",
    "rope_kv_write",
    "silu_mul",
    "tree_attention",
    "tree_mask",
]


def backends() -> dict[str, bool]:
    """Which backends this build contains: "cpu", "simt" (emulated CUDA kernels), "cuda"."""
    return {"cpu": True, "simt": True, "cuda": bool(_C.build_info()["cuda"])}
