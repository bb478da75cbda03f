// Attention over one share of the slots on tensor cores: bfloat16 and float16, D a multiple of 16.
//
// Work:   a block takes 16, 32 or 64 rows (all query heads of the key-value head times the nodes), tile after tile of
//         64 slots. Of its four warps, plan.row_tile / 16 stand side by side over the rows, the others share the slots:
//         a warp takes 16 rows x 16 slots at a time, scores = Q K^T, weights, sums += weights V, with Q and the sums in
//         registers. The next tile is copied (cp.async) while this one is worked on.
// Layout: lane holds rows g = lane / 4 and g + 8 of its 16, see common/mma.cuh. Rows of a tile in shared memory are D +
// 8
//         elements long, an odd number of 16-byte units, so that ldmatrix meets no bank conflict.
// Numbers: scores, maximum, total and sums are float32. Weights are rounded to the element type for the second product;
//         the total is that of the rounded weights, so that their rounding does not tilt the mean.
// Order:  slots in steps of 16 within a warp, warps in their order at the end. The order within an mma is the
// hardware's. NaN or infinity in a slot that some node does not see would leak through 0 * NaN: a tile with tree slots
// is searched for them, and values are added one by one where there are any.
#pragma once

#include "common/mma.cuh"
#include "tree_attention/attention_job.cuh"

namespace specbranch::SB_GPU {

constexpr int kStepSlots = 16;

// Blocks of one multiprocessor: what shared memory allows on sm_90. Three leave 168 registers, which D = 128 just needs
// there; sm_120 needs more and has shared memory for one block.
template <int D>
constexpr int mma_blocks() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  if (D == 128) return 1;
#endif
  return 3;
}

template <typename T, int D>
struct SlotTile {
  static constexpr int kStride = D + 8;
  T keys[kMmaSlots][kStride];
  T values[kMmaSlots][kStride];
};

// What a warp knows of its 16 rows: per lane, of rows g and g + 8.
template <int D>
struct WarpRows {
  FragmentA queries[D / 16];
  FragmentC sums[D / 8];
  float max[2],
      total[2];        // largest score * log2(e), the same in the four lanes of a row; this lane's part of the total
  int first, node[2];  // row of the head, nodes of its rows; rows behind the last take its node
};

template <typename T, int D>
__device__ void start_tile(const TreeAttentionParams& p, const AttentionJob& job, int start, SlotTile<T, D>* tile) {
  constexpr int kUnits = D / 8;  // of 16 bytes
  const T* keys = static_cast<const T*>(p.cache.data) + keys_offset(p, job);
  SB_UNROLL
  for (int k = 0; k < kMmaSlots * kUnits / kAttentionThreads; ++k) {
    const int i = static_cast<int>(threadIdx.x) + k * kAttentionThreads;
    const int slot = i / kUnits, d = i % kUnits * 8;
    const bool given = start + slot < job.end;
    const T* key = given ? keys + (start + slot) * p.cache.slot_stride + d : keys;
    start_copy(&tile->keys[slot][d], key, given);
    start_copy(&tile->values[slot][d], key + p.cache.kv_stride, given);
  }
}

template <typename T, int D>
__device__ WarpRows<D> begin_rows(const TreeAttentionParams& p, const AttentionPlan& plan, const AttentionJob& job,
                                  int row_warp, int lane) {
  WarpRows<D> rows;
  rows.first = job.first_row + row_warp * kGroupRows;
  SB_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int row = rows.first + lane / 4 + 8 * h;
    const bool given = row < plan.rows;
    rows.node[h] = (given ? row : plan.rows - 1) / plan.group;
    rows.max[h] = kNothing, rows.total[h] = 0.0f;
    const T* q = static_cast<const T*>(p.q) + (given ? row_offset(p, plan, job.b, job.kv_head, row) : 0) + lane % 4 * 2;
    SB_UNROLL
    for (int k = 0; k < D / 16; ++k) {
      rows.queries[k].words[h] = given ? *reinterpret_cast<const uint32_t*>(q + 16 * k) : 0u;
      rows.queries[k].words[h + 2] = given ? *reinterpret_cast<const uint32_t*>(q + 16 * k + 8) : 0u;
    }
  }
  SB_UNROLL
  for (int i = 0; i < D / 8; ++i) rows.sums[i] = FragmentC{};
  return rows;
}

// Scores times scale * log2(e) of 16 slots of the tile, from `first` on; -inf where the node does not see the slot.
template <typename T, int D>
__device__ void score_step(const TreeAttentionParams& p, const AttentionJob& job, const WarpRows<D>& rows,
                           const SlotTile<T, D>& tile, int start, int first, int lane, FragmentC (&scores)[2]) {
  const T* key = &tile.keys[first + lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8];
  SB_UNROLL
  for (int k = 0; k < D / 16; ++k) {
    uint32_t words[4];
    load_matrices(key + 16 * k, words);
    multiply_add<T>(rows.queries[k], {words[0], words[1]}, &scores[0]);
    multiply_add<T>(rows.queries[k], {words[2], words[3]}, &scores[1]);
  }
  const float factor = p.scale * 1.44269504f;
  const bool all_seen = start + first + kStepSlots <= job.prefix;
  SB_UNROLL
  for (int i = 0; i < 8; ++i) {
    float& score = scores[i / 4].values[i % 4];
    score *= factor;
    if (all_seen) continue;
    const int slot = start + first + i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (slot >= job.end || !is_visible(p, job, rows.node[i / 2 % 2], slot)) score = kNothing;
  }
}

// The maximum takes in the scores; what was summed up is scaled down where it has grown.
template <int D>
__device__ void raise_max(const FragmentC (&scores)[2], WarpRows<D>* rows) {
  float max[2], decay[2];
  bool grown = false;
  SB_UNROLL
  for (int h = 0; h < 2; ++h) {
    const float *low = &scores[0].values[2 * h], *high = &scores[1].values[2 * h];
    max[h] = fmaxf(fmaxf(low[0], low[1]), fmaxf(high[0], high[1]));
    max[h] = fmaxf(max[h], __shfl_xor_sync(kFullMask, max[h], 1));
    max[h] = fmaxf(max[h], __shfl_xor_sync(kFullMask, max[h], 2));
    grown |= max[h] > rows->max[h];
    max[h] = fmaxf(max[h], rows->max[h]);
  }
  if (!__any_sync(kFullMask, grown)) return;
  SB_UNROLL
  for (int h = 0; h < 2; ++h) {
    decay[h] = exp2f(rows->max[h] - base_of(max[h]));
    rows->max[h] = max[h];
    rows->total[h] *= decay[h];
  }
  SB_UNROLL
  for (int i = 0; i < 4 * (D / 8); ++i) rows->sums[i / 4].values[i % 4] *= decay[i / 2 % 2];
}

// Rounded weights of 16 rows and 16 slots, as the left side of a product; the totals take them in.
template <typename T, int D>
__device__ FragmentA weigh_step(const FragmentC (&scores)[2], WarpRows<D>* rows) {
  FragmentA weights;
  SB_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float* pair = &scores[i / 2].values[i % 2 * 2];
    const float base = base_of(rows->max[i % 2]);
    weights.words[i] = rounded_pair<T>(exp2f(pair[0] - base), exp2f(pair[1] - base));
    rows->total[i % 2] += low_of<T>(weights.words[i]) + high_of<T>(weights.words[i]);
  }
  return weights;
}

template <typename T, int D>
__device__ void add_values_by_mma(const FragmentA& weights, const SlotTile<T, D>& tile, int first, int lane,
                                  WarpRows<D>* rows) {
  const T* value = &tile.values[first + lane % 16][lane / 16 * 8];
  SB_UNROLL
  for (int k = 0; k < D / 16; ++k) {
    uint32_t words[4];
    load_transposed(value + 16 * k, words);
    multiply_add<T>(weights, {words[0], words[1]}, &rows->sums[2 * k]);
    multiply_add<T>(weights, {words[2], words[3]}, &rows->sums[2 * k + 1]);
  }
}

// The same without touching values of weight 0. Rare, so it takes its time.
template <typename T, int D>
__device__ void add_values_one_by_one(const FragmentA& weights, const SlotTile<T, D>& tile, int first, int lane,
                                      WarpRows<D>* rows) {
  for (int s = 0; s < kStepSlots; ++s) {
    const int holder = lane / 4 * 4 + s % 8 / 2;
    const uint32_t low = __shfl_sync(kFullMask, s < 8 ? weights.words[0] : weights.words[2], holder);
    const uint32_t high = __shfl_sync(kFullMask, s < 8 ? weights.words[1] : weights.words[3], holder);
    const float weight[2] = {s % 2 ? high_of<T>(low) : low_of<T>(low), s % 2 ? high_of<T>(high) : low_of<T>(high)};
    SB_UNROLL
    for (int i = 0; i < 4 * (D / 8); ++i) {
      if (weight[i / 2 % 2] == 0.0f) continue;
      const float value = to_float(tile.values[first + s][i / 4 * 8 + lane % 4 * 2 + i % 2]);
      float& sum = rows->sums[i / 4].values[i % 4];
      sum = fused_multiply_add(weight[i / 2 % 2], value, sum);
    }
  }
}

// Is a value of the tile NaN or infinite? Asked by the whole block.
template <typename T, int D>
__device__ bool has_unusual_value(const SlotTile<T, D>& tile) {
  int found = 0;
  for (int i = static_cast<int>(threadIdx.x); i < kMmaSlots * D; i += kAttentionThreads) {
    const float value = to_float(tile.values[i / D][i % D]);
    found |= (float_bits(value) & 0x7F800000u) == 0x7F800000u;
  }
  return __syncthreads_or(found) != 0;
}

// The warp's rows against its steps of one tile of slots.
template <typename T, int D>
__device__ void attend_tile(const TreeAttentionParams& p, const AttentionPlan& plan, const AttentionJob& job, int start,
                            const SlotTile<T, D>& tile, WarpRows<D>* rows) {
  const int row_warps = plan.row_tile / kGroupRows, warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32), slot_warps = kAttentionWarps / row_warps;
  const bool one_by_one = start + kMmaSlots > job.prefix && has_unusual_value(tile);
  if (rows->first >= plan.rows) return;
  for (int first = warp / row_warps * kStepSlots; first < kMmaSlots; first += slot_warps * kStepSlots) {
    if (start + first >= job.end) return;
    FragmentC scores[2] = {};
    score_step<T, D>(p, job, *rows, tile, start, first, lane, scores);
    raise_max<D>(scores, rows);
    const FragmentA weights = weigh_step<T, D>(scores, rows);
    if (one_by_one) {
      add_values_one_by_one<T, D>(weights, tile, first, lane, rows);
    } else {
      add_values_by_mma<T, D>(weights, tile, first, lane, rows);
    }
  }
}

// The rows' sums over the warps that shared their slots.
template <int D>
struct WarpResults {
  float sums[kAttentionWarps][kGroupRows][D];
  float max[kAttentionWarps][kGroupRows], total[kAttentionWarps][kGroupRows];
};

template <int D>
__device__ void publish_rows(const WarpRows<D>& rows, WarpResults<D>* results) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  SB_UNROLL
  for (int h = 0; h < 2; ++h) {
    float total = rows.total[h];
    total += __shfl_xor_sync(kFullMask, total, 1);
    total += __shfl_xor_sync(kFullMask, total, 2);
    const int row = lane / 4 + 8 * h;
    if (lane % 4 == 0) results->max[warp][row] = rows.max[h], results->total[warp][row] = total;
    SB_UNROLL
    for (int i = 0; i < D / 8; ++i) {
      float* sum = &results->sums[warp][row][8 * i + lane % 4 * 2];
      sum[0] = rows.sums[i].values[2 * h], sum[1] = rows.sums[i].values[2 * h + 1];
    }
  }
}

template <typename T, int D>
__device__ void store_rows(const TreeAttentionParams& p, const AttentionPlan& plan, const AttentionJob& job,
                           const WarpResults<D>& results) {
  const int row_warps = plan.row_tile / kGroupRows;
  for (int i = static_cast<int>(threadIdx.x); i < plan.row_tile * D; i += kAttentionThreads) {
    const int r = i / D % kGroupRows, d = i % D, row = job.first_row + i / D;
    if (row >= plan.rows) return;
    float max = kNothing, sum = 0.0f, total = 0.0f;
    for (int w = i / D / kGroupRows; w < kAttentionWarps; w += row_warps) max = fmaxf(max, results.max[w][r]);
    for (int w = i / D / kGroupRows; w < kAttentionWarps; w += row_warps) {
      const float weight = exp2f(results.max[w][r] - base_of(max));
      sum = fused_multiply_add(weight, results.sums[w][r][d], sum);
      total = fused_multiply_add(weight, results.total[w][r], total);
    }
    store_sum<T>(p, plan, job, row, d, sum, total);
    if (d == 0) store_total(p, plan, job, row, max, total);
  }
}

template <typename T, int D>
__global__ void __launch_bounds__(kAttentionThreads, mma_blocks<D>())
    attend_mma_kernel(TreeAttentionParams p, AttentionPlan plan) {
  using Tile = SlotTile<T, D>;
  static_assert(sizeof(WarpResults<D>) <= 2 * sizeof(Tile), "the results take the place of the tiles");
  SB_DYNAMIC_SHARED(Tile, tiles);
  const AttentionJob job = job_of_block(p, plan);
  if (job.first_slot == job.last_slot && plan.num_splits > 1) return store_empty_share(p, plan, job);
  if (job.first_slot < job.last_slot) start_tile<T, D>(p, job, job.first_slot, &tiles[0]);
  end_copy_group();
  const int row_warp = static_cast<int>(threadIdx.x / 32) % (plan.row_tile / kGroupRows);
  WarpRows<D> rows = begin_rows<T, D>(p, plan, job, row_warp, static_cast<int>(threadIdx.x % 32));
  int now = 0;
  for (int start = job.first_slot; start < job.last_slot; start += kMmaSlots, now ^= 1) {
    if (start + kMmaSlots < job.last_slot) start_tile<T, D>(p, job, start + kMmaSlots, &tiles[now ^ 1]);
    end_copy_group();
    wait_for_copies<1>();
    __syncthreads();
    attend_tile<T, D>(p, plan, job, start, tiles[now], &rows);
    __syncthreads();  // the tile is free for the one after the next
  }
  wait_for_copies<0>();
  auto* results = reinterpret_cast<WarpResults<D>*>(tiles);
  publish_rows<D>(rows, results);
  __syncthreads();
  store_rows<T, D>(p, plan, job, *results);
}

template <typename T, int D>
void launch_mma(const TreeAttentionParams& p, const AttentionPlan& plan, Stream stream) {
  launch(attend_mma_kernel<T, D>,
         dim3(static_cast<unsigned>(plan.num_row_tiles * plan.num_splits), static_cast<unsigned>(p.Hkv),
              static_cast<unsigned>(p.B)),
         dim3(kAttentionThreads), 2 * sizeof(SlotTile<T, D>), stream, p, plan);
}

template <typename T>
void launch_mma(const TreeAttentionParams& p, const AttentionPlan& plan, Stream stream) {
  switch (p.D) {
    case 32:
      return launch_mma<T, 32>(p, plan, stream);
    case 64:
      return launch_mma<T, 64>(p, plan, stream);
    case 80:
      return launch_mma<T, 80>(p, plan, stream);
    case 96:
      return launch_mma<T, 96>(p, plan, stream);
    default:
      return launch_mma<T, 128>(p, plan, stream);
  }
}

}  // namespace specbranch::SB_GPU
