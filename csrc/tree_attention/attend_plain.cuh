// Attention over one share of the slots in float32 arithmetic throughout: for float32, for head dimensions that the
// tensor cores' kernel does not know, and for caches that are not aligned. Exactness over speed.
//
// Work:   four warps; warp w owns rows w, w + 4, ... of the block's kRows. Per tile of 32 slots: the keys come to
// shared
//         memory; lane = slot makes the score of its slot with each row; the values take the place of the keys; lane
//         owns elements d % 32 of the sums. All rows share each key and value that was read.
// Shared: queries and sums [kRows, D], one tile [32, D + 1] (no bank conflicts), weights [kRows, 32].
// Order:  a dot product in four lanes (element d in lane d % 4), added pairwise; slots one by one within a share.
#pragma once

#include "tree_attention/attention_job.cuh"

namespace specbranch::SB_GPU {

struct PlainMemory {
  float *queries, *sums, *tile, *weights;
};

__device__ inline PlainMemory plain_memory(float* memory, int rows, int64_t D) {
  float* sums = memory + rows * D;
  float* tile = sums + rows * D;
  return {memory, sums, tile, tile + kPlainSlots * (D + 1)};
}

template <int kRows>
int64_t plain_memory_bytes(int64_t D) {
  return (2 * kRows * D + kPlainSlots * (D + 1) + kRows * kPlainSlots) * static_cast<int64_t>(sizeof(float));
}

// Queries times scale * log2(e), so that weights are powers of two; sums are zero.
template <typename T, int kRows>
__device__ void begin_plain_rows(const TreeAttentionParams& p, const AttentionPlan& plan, const AttentionJob& job,
                                 const PlainMemory& memory) {
  const int D = static_cast<int>(p.D);
  const float factor = p.scale * 1.44269504f;
  for (int i = static_cast<int>(threadIdx.x); i < kRows * D; i += kAttentionThreads) {
    const int row = job.first_row + i / D;
    const T* q = static_cast<const T*>(p.q) + i % D;
    memory.queries[i] = row < plan.rows ? to_float(q[row_offset(p, plan, job.b, job.kv_head, row)]) * factor : 0.0f;
    memory.sums[i] = 0.0f;
  }
}

// Slots start .. start + 31 of the keys or values, from job.end on zeros.
template <typename T>
__device__ void load_tile(const TreeAttentionParams& p, const AttentionJob& job, const T* source, int start,
                          float* tile) {
  const int D = static_cast<int>(p.D);
  for (int i = static_cast<int>(threadIdx.x); i < kPlainSlots * D; i += kAttentionThreads) {
    const int slot = start + i / D, d = i % D;
    tile[i / D * (D + 1) + d] = slot < job.end ? to_float(source[slot * p.cache.slot_stride + d]) : 0.0f;
  }
}

__device__ inline float dot_product(const float* a, const float* b, int D) {
  float lanes[4] = {};
  int d = 0;
  for (; d + 4 <= D; d += 4)
    for (int i = 0; i < 4; ++i) lanes[i] = fused_multiply_add(a[d + i], b[d + i], lanes[i]);
  for (int i = 0; d + i < D; ++i) lanes[i] = fused_multiply_add(a[d + i], b[d + i], lanes[i]);
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

// The warp's weights of one row from its scores, lane = slot; what was summed before is scaled by the decay returned.
__device__ inline float weigh_slots(float score, float* max, float* total, float* weight) {
  float largest = score;
  for (int bits = 16; bits > 0; bits /= 2) largest = fmaxf(largest, __shfl_xor_sync(kFullMask, largest, bits));
  largest = fmaxf(largest, *max);
  const float base = base_of(largest), decay = exp2f(*max - base);
  *weight = exp2f(score - base);
  float sum = *weight;
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(kFullMask, sum, bits);
  *total = fused_multiply_add(*total, decay, sum);
  *max = largest;
  return decay;
}

// Slots of weight 0 are not read: what a node does not see may be NaN.
__device__ inline void add_values(const float* weights, const float* values, float decay, int D, int lane,
                                  float* sums) {
  for (int d = lane; d < D; d += 32) {
    float sum = sums[d] * decay;
    for (int s = 0; s < kPlainSlots; ++s) {
      if (weights[s] != 0.0f) sum = fused_multiply_add(weights[s], values[s * (D + 1) + d], sum);
    }
    sums[d] = sum;
  }
}

template <typename T, int kRows>
__global__ void __launch_bounds__(kAttentionThreads, 4) attend_plain_kernel(TreeAttentionParams p, AttentionPlan plan) {
  constexpr int kOwned = kRows / kAttentionWarps;
  SB_DYNAMIC_SHARED(float, bytes);
  const PlainMemory memory = plain_memory(bytes, kRows, p.D);
  const AttentionJob job = job_of_block(p, plan);
  if (job.first_slot == job.last_slot && plan.num_splits > 1) return store_empty_share(p, plan, job);
  const int D = static_cast<int>(p.D), lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const T* keys = static_cast<const T*>(p.cache.data) + keys_offset(p, job);
  float max[kOwned], total[kOwned], decay[kOwned];
  SB_UNROLL
  for (int k = 0; k < kOwned; ++k) max[k] = kNothing, total[k] = 0.0f;
  begin_plain_rows<T, kRows>(p, plan, job, memory);
  for (int start = job.first_slot; start < job.last_slot; start += kPlainSlots) {
    load_tile(p, job, keys, start, memory.tile);
    __syncthreads();
    SB_UNROLL
    for (int k = 0; k < kOwned; ++k) {
      const int r = warp + k * kAttentionWarps, row = job.first_row + r, slot = start + lane;
      const float dot = dot_product(memory.queries + r * D, memory.tile + lane * (D + 1), D);
      const bool seen = row < plan.rows && slot < job.end && is_visible(p, job, row / plan.group, slot);
      decay[k] = weigh_slots(seen ? dot : kNothing, &max[k], &total[k], &memory.weights[r * kPlainSlots + lane]);
    }
    __syncthreads();
    load_tile(p, job, keys + p.cache.kv_stride, start, memory.tile);
    __syncthreads();
    SB_UNROLL
    for (int k = 0; k < kOwned; ++k) {
      const int r = warp + k * kAttentionWarps;
      add_values(memory.weights + r * kPlainSlots, memory.tile, decay[k], D, lane, memory.sums + r * D);
    }
    __syncthreads();
  }
  __syncthreads();  // a share without slots has met no barrier yet
  SB_UNROLL
  for (int k = 0; k < kOwned; ++k) {
    const int r = warp + k * kAttentionWarps, row = job.first_row + r;
    if (row >= plan.rows) continue;
    for (int d = lane; d < D; d += 32) store_sum<T>(p, plan, job, row, d, memory.sums[r * D + d], total[k]);
    if (lane == 0) store_total(p, plan, job, row, max[k], total[k]);
  }
}

template <typename T, int kRows>
void launch_plain(const TreeAttentionParams& p, const AttentionPlan& plan, Stream stream) {
  launch(attend_plain_kernel<T, kRows>,
         dim3(static_cast<unsigned>(plan.num_row_tiles * plan.num_splits), static_cast<unsigned>(p.Hkv),
              static_cast<unsigned>(p.B)),
         dim3(kAttentionThreads), static_cast<size_t>(plain_memory_bytes<kRows>(p.D)), stream, p, plan);
}

}  // namespace specbranch::SB_GPU
