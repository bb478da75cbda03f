// Reading one row of logits on the GPU: the definitions of distribution.h for warps. What row_cpu.h is for the CPU, and
// the same bits. Shared by sample, branch_topk, logit_cutoff, verify and verify_tree.
//
// Layout: a row is contiguous, float32, bfloat16 or float16, in chunks of 1024 tokens; the last one is padded with
// -inf. Work:   one warp takes one chunk: lane l holds tokens l, l + 32, ... in registers, group g (32 tokens in a row)
// in
//         register g. Loads are 32 independent ones, each of a warp's 32 neighbours. How the chunks of a row are split
//         over warps and blocks is the caller's choice and changes nothing.
// Order:  a lane adds its tokens in order, the lanes are added by a butterfly (shuffles 16, 8, 4, 2, 1), chunks in
// order
//         in float64. x + y = y + x, so every lane ends with the bits of the CPU's lane 0.
// Bound:  about 20 instructions a token for exp, 70 where Gumbel noise is drawn: arithmetic, unless all SMs take part.
// All functions are called by whole warps (blockDim.x is a multiple of 32, one-dimensional) with arguments that are the
// same in all lanes, and return the same in all lanes, except where they say "this lane's".
#pragma once

#include "common/distribution.h"
#include "common/gpu.h"
#include "common/gumbel.h"

namespace specbranch::SB_GPU {

__device__ inline int this_lane() { return static_cast<int>(threadIdx.x % kRowLanes); }

__device__ inline float warp_sum(float value) {
  SB_UNROLL
  for (int bits = kRowLanes / 2; bits > 0; bits /= 2) value += __shfl_xor_sync(kFullMask, value, bits);
  return value;
}

__device__ inline float warp_max(float value) {
  SB_UNROLL
  for (int bits = kRowLanes / 2; bits > 0; bits /= 2) {
    const float other = __shfl_xor_sync(kFullMask, value, bits);
    value = value > other ? value : other;
  }
  return value;
}

__device__ inline int warp_min(int value) {
  SB_UNROLL
  for (int bits = kRowLanes / 2; bits > 0; bits /= 2) {
    const int other = __shfl_xor_sync(kFullMask, value, bits);
    value = value < other ? value : other;
  }
  return value;
}

// ---------------------------------------------------------------------------------------------- a row, a chunk of it
struct Row {
  const void* data;
  DType dtype;
  int64_t size;
  float inv_temperature;
  float cutoff;  // -inf: keep all
};

// Batch row b, position i. `cutoff` points at the row's own value, or is nullptr.
__device__ inline Row make_row(const Logits& logits, int64_t b, int64_t i, int64_t size, float temperature,
                               const float* cutoff) {
  const int64_t offset = b * logits.stride0 + i * logits.stride1;
  const bool keep_all = cutoff == nullptr || temperature == 0.0f;
  return Row{static_cast<const char*>(logits.data) + offset * element_size(logits.dtype), logits.dtype, size,
             inverse_temperature(temperature), keep_all ? -kInfinity : *cutoff};
}

// This lane's tokens of a chunk: element g is token 32 g + lane.
using Lane = float[kGroups];

template <typename T>
__device__ inline void load_elements(const T* data, int64_t count, Lane& values) {
  if (count >= kChunk) {
    SB_UNROLL
    for (int g = 0; g < kGroups; ++g) values[g] = to_float(data[g * kRowLanes + this_lane()]);
  } else {
    SB_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      const int i = g * kRowLanes + this_lane();
      values[g] = i < count ? to_float(data[i]) : -kInfinity;
    }
  }
}

// This lane's logits.
__device__ inline void load_chunk(const Row& row, int64_t chunk, Lane& logits) {
  const int64_t start = chunk * kChunk, count = row.size - start;
  if (row.dtype == DType::kFloat32) return load_elements(static_cast<const float*>(row.data) + start, count, logits);
  if (row.dtype == DType::kBFloat16)
    return load_elements(static_cast<const BFloat16*>(row.data) + start, count, logits);
  load_elements(static_cast<const Float16*>(row.data) + start, count, logits);
}

__device__ inline float logit_at(const Row& row, int64_t token) {
  if (row.dtype == DType::kFloat32) return static_cast<const float*>(row.data)[token];
  if (row.dtype == DType::kBFloat16) return to_float(static_cast<const BFloat16*>(row.data)[token]);
  return to_float(static_cast<const Float16*>(row.data)[token]);
}

__device__ inline float probability_of(const Row& row, const RowSummary& summary, int64_t token) {
  return probability(logit_at(row, token), row.cutoff, row.inv_temperature, summary.max, summary.inv_sum);
}

// exp((logit - reference) / temperature), 0 for what is cut. `reference` is finite.
__device__ inline float weight_of(float logit, const Row& row, float reference) {
  const float y = (logit - reference) * row.inv_temperature;
  const float weight = exp_nonpositive(y < 0.0f ? y : 0.0f);
  return logit >= row.cutoff ? weight : 0.0f;
}

// This lane's weights of a chunk.
__device__ inline void chunk_weights(const Row& row, int64_t chunk, float reference, Lane& weights) {
  load_chunk(row, chunk, weights);
  SB_UNROLL
  for (int g = 0; g < kGroups; ++g) weights[g] = weight_of(weights[g], row, reference);
}

__device__ inline float chunk_sum(const Lane& weights) {
  float sum = 0.0f;
  SB_UNROLL
  for (int g = 0; g < kGroups; ++g) sum += weights[g];
  return warp_sum(sum);
}

// ---------------------------------------------------------------------------------------------- statistics
enum class Read { kMax, kSums, kEntropy };  // each includes the ones before

struct ChunkStats {
  float max;       // of the kept logits; -inf where none is kept
  float sum;       // of exp(y), y = (logit - max) / temperature
  float weighted;  // of exp(y) * y
  int32_t bad;     // a NaN or +inf logit
};

__device__ inline ChunkStats chunk_max(const Row& row, const Lane& logits) {
  float max = -kInfinity;
  bool bad = false;
  SB_UNROLL
  for (int g = 0; g < kGroups; ++g) {
    bad |= !(logits[g] < kInfinity);  // true for NaN too
    const float kept = logits[g] >= row.cutoff ? logits[g] : -kInfinity;
    max = kept > max ? kept : max;
  }
  const int32_t any_bad = __any_sync(kFullMask, bad) != 0;
  return ChunkStats{warp_max(max), 0.0f, 0.0f, any_bad};
}

__device__ inline ChunkStats read_chunk(const Row& row, int64_t chunk, Read read) {
  Lane logits;
  load_chunk(row, chunk, logits);
  ChunkStats stats = chunk_max(row, logits);
  if (read == Read::kMax || stats.bad || stats.max == -kInfinity) return stats;
  float sum = 0.0f, weighted = 0.0f;
  SB_UNROLL
  for (int g = 0; g < kGroups; ++g) {
    const float y = (logits[g] - stats.max) * row.inv_temperature;
    const float weight = weight_of(logits[g], row, stats.max);
    sum += weight;
    weighted = fused_multiply_add(weight, y > kExpFloor ? y : kExpFloor, weighted);
  }
  stats.sum = warp_sum(sum);
  if (read == Read::kEntropy) stats.weighted = warp_sum(weighted);
  return stats;
}

// `total` plus the lanes' values in lane order, of the first `count` lanes; *before: what was in front of this lane's.
__device__ inline double add_in_order(double total, double value, int count, double* before) {
  *before = total;
  SB_UNROLL
  for (int j = 0; j < kRowLanes; ++j) {
    if (j >= count) break;
    if (j == this_lane()) *before = total;
    total += __shfl_sync(kFullMask, value, j);
  }
  return total;
}

SB_HD int lanes_in_use(int64_t left) { return left < kRowLanes ? static_cast<int>(left) : kRowLanes; }

// This lane's: the factor by which a chunk's sum counts in its row.
__device__ inline double chunk_scale(const ChunkStats& stats, float row_max, float inv_temperature) {
  return exp_nonpositive((stats.max - row_max) * inv_temperature);
}

__device__ inline RowSummary summarize_max(const ChunkStats* chunks, int64_t num_chunks) {
  float max = -kInfinity;
  bool bad = false;
  for (int64_t c = this_lane(); c < num_chunks; c += kRowLanes) {
    bad |= chunks[c].bad != 0;
    max = chunks[c].max > max ? chunks[c].max : max;
  }
  const bool any_bad = __any_sync(kFullMask, bad) != 0;
  max = warp_max(max);
  return RowSummary{max, 0.0f, 0.0, 0.0, !any_bad && max > -kInfinity};
}

// A row's summary from its chunks, which lie in shared or global memory.
__device__ inline RowSummary summarize(const ChunkStats* chunks, int64_t num_chunks, float inv_temperature, Read read) {
  RowSummary summary = summarize_max(chunks, num_chunks);
  if (!summary.valid || read == Read::kMax) return summary;
  double before;
  for (int64_t first = 0; first < num_chunks; first += kRowLanes) {
    const int count = lanes_in_use(num_chunks - first);
    double mass = 0.0, weighted = 0.0;
    if (this_lane() < count) {
      const ChunkStats stats = chunks[first + this_lane()];
      const float shift = (stats.max - summary.max) * inv_temperature;
      const double scale = chunk_scale(stats, summary.max, inv_temperature), sum = static_cast<double>(stats.sum);
      mass = rounded_multiply(scale, sum);
      const double shifted = rounded_multiply(static_cast<double>(shift), sum);
      if (scale > 0.0) weighted = rounded_multiply(scale, static_cast<double>(stats.weighted) + shifted);
    }
    summary.sum = add_in_order(summary.sum, mass, count, &before);
    if (read == Read::kEntropy) summary.weighted = add_in_order(summary.weighted, weighted, count, &before);
  }
  summary.inv_sum = static_cast<float>(1.0 / summary.sum);
  return summary;
}

// ---------------------------------------------------------------------------------------------- inverse CDF
// A running sum in token order (float64) until it exceeds `target`; `picked` is where it did, or, if rounding left
// none, the last index with a positive mass.
struct Scan {
  double target;
  double running = 0.0;
  double before = 0.0;  // what was in front of `picked`
  int64_t picked = -1;
  bool found = false;

  __device__ explicit Scan(double target_, double running_ = 0.0) : target(target_), running(running_) {}

  // The lanes' masses of indices first .. first + count - 1.
  __device__ void add(double mass, int64_t first, int count) {
    double in_front;
    running = add_in_order(running, mass, count, &in_front);
    const bool positive = this_lane() < count && mass > 0.0;
    const uint32_t any = __ballot_sync(kFullMask, positive);
    const uint32_t beyond = __ballot_sync(kFullMask, positive && in_front + mass > target);
    if (any == 0) return;
    const int lane = beyond != 0 ? __ffs(static_cast<int>(beyond)) - 1 : 31 - __clz(static_cast<int>(any));
    picked = first + lane;
    before = __shfl_sync(kFullMask, in_front, lane);
    found = beyond != 0;
  }
};

// Lane l gets the sum of group l, by the butterfly that adds its 32 tokens: 31 shuffles for all groups together.
__device__ inline float sums_of_groups(const Lane& weights) {
  Lane sums;
  SB_UNROLL
  for (int g = 0; g < kGroups; ++g) sums[g] = weights[g];
  SB_UNROLL
  for (int width = kRowLanes / 2; width > 0; width /= 2) {
    const bool upper = (this_lane() & width) != 0;
    SB_UNROLL
    for (int g = 0; g < kGroups / 2; ++g) {
      if (g >= width) break;
      const float mine = upper ? sums[g + width] : sums[g];
      sums[g] = mine + __shfl_xor_sync(kFullMask, upper ? sums[g] : sums[g + width], width);
    }
  }
  return sums[0];
}

// Index in the chunk: groups of 32 tokens, then token by token. One of weight 0 is never returned; the chunk has mass.
__device__ inline int pick_in_chunk(const Lane& weights, double scale, double target) {
  Scan groups(target);
  groups.add(rounded_multiply(scale, static_cast<double>(sums_of_groups(weights))), 0, kGroups);
  float weight = 0.0f;
  SB_UNROLL
  for (int g = 0; g < kGroups; ++g) weight = g == groups.picked ? weights[g] : weight;
  Scan tokens(target, groups.before);
  tokens.add(rounded_multiply(scale, static_cast<double>(weight)), 0, kRowLanes);
  return static_cast<int>(groups.picked * kRowLanes + tokens.picked);
}

__device__ inline int64_t draw_inverse_cdf(const Row& row, const RowSummary& summary, const ChunkStats* chunks,
                                           double u) {
  const int64_t num_chunks = chunks_of(row.size);
  Scan scan(rounded_multiply(u, summary.sum));
  for (int64_t first = 0; first < num_chunks && !scan.found; first += kRowLanes) {
    const int count = lanes_in_use(num_chunks - first);
    double mass = 0.0;
    if (this_lane() < count) {
      const ChunkStats stats = chunks[first + this_lane()];
      mass = rounded_multiply(chunk_scale(stats, summary.max, row.inv_temperature), static_cast<double>(stats.sum));
    }
    scan.add(mass, first, count);
  }
  const ChunkStats stats = chunks[scan.picked];
  Lane weights;
  chunk_weights(row, scan.picked, stats.max, weights);
  const double scale = chunk_scale(stats, summary.max, row.inv_temperature);
  return scan.picked * kChunk + pick_in_chunk(weights, scale, scan.target - scan.before);
}

// ---------------------------------------------------------------------------------------------- argmax
// Lowest index of the maximum.
__device__ inline int64_t argmax(const Row& row, const RowSummary& summary, const ChunkStats* chunks) {
  int chunk = 0x7FFFFFFF;
  for (int64_t c = chunks_of(row.size) - 1 - this_lane(); c >= 0; c -= kRowLanes)
    if (chunks[c].max == summary.max) chunk = static_cast<int>(c);
  chunk = warp_min(chunk);
  Lane logits;
  load_chunk(row, chunk, logits);
  int index = kChunk;
  SB_UNROLL
  for (int g = kGroups - 1; g >= 0; --g)
    if (logits[g] == summary.max) index = g * kRowLanes + this_lane();
  return static_cast<int64_t>(chunk) * kChunk + warp_min(index);
}

// ---------------------------------------------------------------------------------------------- Gumbel
struct Best {
  float score;
  int32_t token;  // -1: none
};

// The better of two: the higher score, of equal scores the lower token; what has no token loses.
__device__ inline Best better(Best a, Best b) {
  const bool first = b.token < 0 || (a.token >= 0 && (a.score > b.score || (a.score == b.score && a.token < b.token)));
  return first ? a : b;
}

__device__ inline Best warp_best(Best best) {
  SB_UNROLL
  for (int bits = kRowLanes / 2; bits > 0; bits /= 2)
    best =
        better(best, Best{__shfl_xor_sync(kFullMask, best.score, bits), __shfl_xor_sync(kFullMask, best.token, bits)});
  return best;
}

// This lane's scores of a chunk: (logit - max) / temperature + Gumbel noise; -inf for what is cut.
__device__ inline void gumbel_scores(const Row& row, const RowSummary& summary, int64_t seed, int64_t position,
                                     int64_t chunk, Lane& scores) {
  constexpr int kBlocks = kGroups / 4;  // Philox blocks a lane: one serves four tokens that lie 256 apart
  load_chunk(row, chunk, scores);
  SB_UNROLL
  for (int q = 0; q < kBlocks; ++q) {
    const uint32_t counter = gumbel_counter(chunk * kChunk) + static_cast<uint32_t>(q * kRowLanes + this_lane());
    const PhiloxBlock block = philox_at(seed, position, counter, kPurposeGumbel);
    SB_UNROLL
    for (int w = 0; w < 4; ++w) {
      float& value = scores[w * kBlocks + q];
      const float score = fused_multiply_add(value - summary.max, row.inv_temperature, gumbel_from_word(block.word[w]));
      value = value >= row.cutoff ? score : -kInfinity;
    }
  }
}

// No token of the chunk can beat the row's best score.
__device__ inline bool gumbel_hopeless(const Row& row, const RowSummary& summary, const ChunkStats& stats) {
  return fused_multiply_add(stats.max - summary.max, row.inv_temperature, kGumbelMax) < -3.0f;
}

// The best token of a chunk; none where the chunk is hopeless.
__device__ inline Best gumbel_best(const Row& row, const RowSummary& summary, const ChunkStats& stats, int64_t seed,
                                   int64_t position, int64_t chunk) {
  Best best{-kInfinity, -1};
  if (gumbel_hopeless(row, summary, stats)) return best;
  Lane scores;
  gumbel_scores(row, summary, seed, position, chunk, scores);
  SB_UNROLL
  for (int g = 0; g < kGroups; ++g) {
    const bool wins = scores[g] > best.score;
    best.token = wins ? static_cast<int32_t>(chunk * kChunk + g * kRowLanes + this_lane()) : best.token;
    best.score = wins ? scores[g] : best.score;
  }
  return warp_best(best);
}

// ---------------------------------------------------------------------------------------------- whole blocks
__device__ inline int this_warp() { return static_cast<int>(threadIdx.x / kRowLanes); }
__device__ inline int warps_of_block() { return static_cast<int>(blockDim.x / kRowLanes); }

// All chunks of a row into shared or global memory, which the block may read on return.
__device__ inline void read_row(const Row& row, Read read, ChunkStats* chunks) {
  for (int64_t c = this_warp(); c < chunks_of(row.size); c += warps_of_block()) {
    const ChunkStats stats = read_chunk(row, c, read);
    if (this_lane() == 0) chunks[c] = stats;
  }
  __syncthreads();
}

// Of `expected` blocks that work on one thing, exactly the last to come gets true, and then sees what all have written.
// `arrived` was set to 0 by an earlier launch.
__device__ inline bool last_to_arrive(uint32_t* arrived, int64_t expected) {
  __shared__ bool is_last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(arrived, 1u) == static_cast<uint32_t>(expected - 1);
    __threadfence();
  }
  __syncthreads();
  return is_last;
}

// Threads of a block whose warps share so many chunks or rows.
inline unsigned threads_for(int64_t items, int max_warps) {
  return static_cast<unsigned>((items < max_warps ? items : max_warps) * kRowLanes);
}

// ---------------------------------------------------------------------------------------------- how to draw
// For a row at temperature 0 the mode is kGreedy whatever the op was asked for.
enum class Mode { kGreedy, kInverseCdf, kGumbel };

__device__ inline Mode mode_of(Draw draw, float temperature) {
  if (temperature == 0.0f) return Mode::kGreedy;
  return draw == Draw::kGumbel ? Mode::kGumbel : Mode::kInverseCdf;
}

}  // namespace specbranch::SB_GPU
