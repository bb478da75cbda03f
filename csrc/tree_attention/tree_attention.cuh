// Softmax attention of N tree nodes over one layer of the slot cache.
//
//   out[b, i, h] = sum_s p_s v_s,  p = softmax_s(scale * q[b, i, h] . k_s)  over the slots s that node i sees:
//   s < prefix_length[b], and prefix_length[b] + j where bit j of ancestor_bits[b, i] is set (causal: j <= i).
//
// Layout: q, out [B, N, Hq, D]; cache [2, B, Hkv, S, D] strided, last dimension contiguous.
// Work:   tree_attention_plan.h. One launch over (row tile, split of the slots; key-value head; batch row), by
//         attend_mma.cuh (tensor cores) or attend_plain.cuh (float32 and the rest); where the slots are split, it
//         leaves maximum, total and sums of each split in the workspace and a second launch (attention_job.cuh)
//         combines them.
// Bound:  by the bytes of the prefix, which are read once per key-value head for up to 64 rows.
// Order:  fixed by shapes and lengths, never by which block is first: each kernel's header, and splits in their order.
#pragma once

#include <stdexcept>
#include <string>

#include "tree_attention/attend_mma.cuh"
#include "tree_attention/attend_plain.cuh"

namespace specbranch::SB_GPU {

template <typename T>
void attend(const TreeAttentionParams& p, const AttentionPlan& plan, Stream stream) {
  if constexpr (sizeof(T) == 2) {
    if (plan.on_tensor_cores) return launch_mma<T>(p, plan, stream);
  }
  plan.row_tile == 16 ? launch_plain<T, 16>(p, plan, stream) : launch_plain<T, 4>(p, plan, stream);
}

template <typename T>
void combine_splits(const TreeAttentionParams& p, const AttentionPlan& plan, Stream stream) {
  const int64_t blocks = ceil_div(p.B * p.Hkv * plan.rows, kAttentionWarps);
  launch(combine_splits_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kAttentionThreads), 0, stream, p, plan);
}

inline void run_tree_attention(const TreeAttentionParams& p, Stream stream) {
  if (p.D > kWidestHead) {
    throw std::invalid_argument("q had heads of " + std::to_string(p.D) + " elements, must have at most " +
                                std::to_string(kWidestHead) + " on this backend");
  }
  if (p.B * p.N * p.Hq * p.D == 0) return;
  const AttentionPlan plan = attention_plan(p);
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    attend<T>(p, plan, stream);
    if (plan.num_splits > 1) combine_splits<T>(p, plan, stream);
  });
}

}  // namespace specbranch::SB_GPU
