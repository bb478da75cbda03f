// What the attention kernels share: the share of a block, which slots a node sees, where a row's sums go, and how the
// sums of several splits become one.
#pragma once

#include "common/gpu.h"
#include "tree_attention/tree_attention_plan.h"

namespace specbranch::SB_GPU {

constexpr int kAttentionThreads = 128, kAttentionWarps = 4;
constexpr float kNothing = -__builtin_huge_valf();  // the largest score of no slot

struct AttentionJob {
  int b, kv_head, split, first_row;
  int prefix, end;            // slots before `prefix` are visible, those from `end` on are not
  int first_slot, last_slot;  // this block's share, `last_slot` excluded; it begins at a whole tile
};

__device__ inline int smaller(int64_t a, int64_t b) { return static_cast<int>(a < b ? a : b); }

// Lengths are the device's to know: one that does not fit is cut to the cache.
__device__ inline AttentionJob job_of_block(const TreeAttentionParams& p, const AttentionPlan& plan) {
  AttentionJob job;
  job.b = static_cast<int>(blockIdx.z);
  job.kv_head = static_cast<int>(blockIdx.y);
  job.split = static_cast<int>(blockIdx.x) % plan.num_splits;
  job.first_row = static_cast<int>(blockIdx.x) / plan.num_splits * plan.row_tile;
  const int length = p.prefix_length[job.b];
  job.prefix = length < 0 ? 0 : smaller(length, p.S);
  const int last_row = smaller(job.first_row + plan.row_tile, plan.rows) - 1;
  const int64_t tree = p.ancestor_bits != nullptr ? 32 * p.W : last_row / plan.group + 1;
  job.end = smaller(job.prefix + tree, p.S);
  const int tiles = (job.end + plan.slot_tile - 1) / plan.slot_tile;
  const int share = (tiles + plan.num_splits - 1) / plan.num_splits * plan.slot_tile;
  job.first_slot = smaller(static_cast<int64_t>(job.split) * share, job.end);
  job.last_slot = smaller(job.first_slot + share, job.end);
  return job;
}

// Only for slots before job.end.
__device__ inline bool is_visible(const TreeAttentionParams& p, const AttentionJob& job, int node, int slot) {
  if (slot < job.prefix) return true;
  const int j = slot - job.prefix;
  if (p.ancestor_bits == nullptr) return j <= node;
  return p.ancestor_bits[(static_cast<int64_t>(job.b) * p.N + node) * p.W + j / 32] >> (j % 32) & 1u;
}

// Element of q and out where a row begins.
__device__ inline int64_t row_offset(const TreeAttentionParams& p, const AttentionPlan& plan, int b, int kv_head,
                                     int row) {
  const int node = row / plan.group, head = kv_head * plan.group + row % plan.group;
  return ((static_cast<int64_t>(b) * p.N + node) * p.Hq + head) * p.D;
}

// Where the slots of the job's head begin in the cache, in elements; the values are kv_stride behind the keys.
__device__ inline int64_t keys_offset(const TreeAttentionParams& p, const AttentionJob& job) {
  return job.b * p.cache.batch_stride + job.kv_head * p.cache.head_stride;
}

__device__ inline int64_t partial_of(const TreeAttentionParams& p, const AttentionPlan& plan, const AttentionJob& job,
                                     int row) {
  return ((job.b * p.Hkv + job.kv_head) * plan.num_splits + job.split) * plan.rows + row;
}

// Element d of a row: to `out` where nobody else works on the row, else to the workspace.
template <typename T>
__device__ void store_sum(const TreeAttentionParams& p, const AttentionPlan& plan, const AttentionJob& job, int row,
                          int64_t d, float sum, float total) {
  if (plan.num_splits > 1) {
    plan.sums[partial_of(p, plan, job, row) * p.D + d] = sum;
    return;
  }
  T* out = static_cast<T*>(p.out) + row_offset(p, plan, job.b, job.kv_head, row) + d;
  from_float(total == 0.0f ? 0.0f : sum / total, out);
}

__device__ inline void store_total(const TreeAttentionParams& p, const AttentionPlan& plan, const AttentionJob& job,
                                   int row, float max, float total) {
  if (plan.num_splits == 1) return;
  plan.max[partial_of(p, plan, job, row)] = max;
  plan.total[partial_of(p, plan, job, row)] = total;
}

// A share without slots: the totals say that the sums, which are not written, do not count.
__device__ inline void store_empty_share(const TreeAttentionParams& p, const AttentionPlan& plan,
                                         const AttentionJob& job) {
  const int row = job.first_row + static_cast<int>(threadIdx.x);
  if (row < plan.rows && threadIdx.x < static_cast<unsigned>(plan.row_tile)) {
    store_total(p, plan, job, row, kNothing, 0.0f);
  }
}

// What the exponents are measured from: 0 where there is no score, so that -inf - -inf does not arise.
__device__ inline float base_of(float max) { return max == kNothing ? 0.0f : max; }

// A warp makes one row of `out` of its splits, in their order; lane owns elements d % 32.
template <typename T>
__global__ void combine_splits_kernel(TreeAttentionParams p, AttentionPlan plan) {
  constexpr int kElements = 4;  // of a lane in one pass over the splits
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kAttentionWarps + threadIdx.x / 32;
  const int64_t head = warp / plan.rows;  // b * Hkv + kv_head
  const int row = static_cast<int>(warp % plan.rows);
  if (head >= p.B * p.Hkv) return;
  const int64_t first = head * plan.num_splits * plan.rows + row;
  float max = kNothing;
  for (int s = lane; s < plan.num_splits; s += 32) max = fmaxf(max, plan.max[first + s * plan.rows]);
  for (int bits = 16; bits > 0; bits /= 2) max = fmaxf(max, __shfl_xor_sync(kFullMask, max, bits));
  max = base_of(max);
  const int64_t start = row_offset(p, plan, static_cast<int>(head / p.Hkv), static_cast<int>(head % p.Hkv), row);
  for (int64_t d = lane; d < p.D; d += 32 * kElements) {
    float total = 0.0f, sums[kElements] = {};
    for (int s = 0; s < plan.num_splits; ++s) {
      const int64_t partial = first + static_cast<int64_t>(s) * plan.rows;
      if (plan.total[partial] == 0.0f) continue;
      const float weight = exp2f(plan.max[partial] - max);
      total = fused_multiply_add(weight, plan.total[partial], total);
      for (int k = 0; k < kElements && d + 32 * k < p.D; ++k) {
        sums[k] = fused_multiply_add(weight, plan.sums[partial * p.D + d + 32 * k], sums[k]);
      }
    }
    for (int k = 0; k < kElements && d + 32 * k < p.D; ++k) {
      from_float(total == 0.0f ? 0.0f : sums[k] / total, static_cast<T*>(p.out) + start + d + 32 * k);
    }
  }
}

}  // namespace specbranch::SB_GPU
