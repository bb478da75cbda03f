// logit_cutoff on the GPU: the largest of three thresholds on a row of logits,
//   top-k:  the k-th largest logit (its equals are kept too)
//   top-p:  the largest logit t for which the tokens >= t hold top_p of the mass left by top-k
//   min-p:  max + temperature * log(min_p)
// so that "keep" is one comparison. -inf: nothing is cut; temperature 0: the maximum; bad row: NaN.
//
// Layout: logits [B, V], rows contiguous.
// Work:   one launch, a block of up to 16 warps a row, a warp a chunk of 1024 tokens. Thresholds by radix select on the
//         logits' ordered bit patterns: three passes over the row (11, 11 and 10 bits), each a histogram in shared
//         memory of counts (top-k) or masses (top-p), of which warp 0 finds the digit where the sum from above reaches
//         what is wanted. No sort.
// Bound:  reading the row up to eight times, from L2 after the first, by one SM.
// Order:  none: counts and masses (2^-40 of the maximum's) are integers.
#pragma once

#include "common/row.cuh"
#include "logit_cutoff/logit_cutoff.h"

namespace specbranch::SB_GPU {

constexpr int kCutoffWarps = 16, kDigitBits = 11, kDigits = 1 << kDigitBits;
using Total = unsigned long long;  // what 64-bit atomics are declared for

// Keys as unsigned numbers in the order of the logits.
__device__ inline uint32_t unsigned_key(float logit) { return static_cast<uint32_t>(order_key(logit)) ^ 0x80000000u; }
__device__ inline float logit_of_key(uint32_t key) { return key_value(static_cast<int32_t>(key ^ 0x80000000u)); }

// What is summed: tokens, or their masses.
enum class Count { kTokens, kMasses };

__device__ inline Total amount(const Row& row, const RowSummary& summary, Count count, float logit) {
  return count == Count::kTokens ? 1ull : static_cast<Total>(mass_of(weight_of(logit, row, summary.max)));
}

// Calls visit(logit) for this thread's finite logits of the row.
template <typename Visit>
__device__ void for_each_logit(const Row& row, const Visit& visit) {
  for (int64_t c = this_warp(); c < chunks_of(row.size); c += warps_of_block()) {
    Lane logits;
    load_chunk(row, c, logits);
    SB_UNROLL
    for (int g = 0; g < kGroups; ++g)
      if (logits[g] > -kInfinity) visit(logits[g]);
  }
}

// The block's sum over the tokens from `key` on.
__device__ inline Total total_from(const Row& row, const RowSummary& summary, Count count, uint32_t key) {
  __shared__ Total total;
  if (threadIdx.x == 0) total = 0;
  __syncthreads();
  Total mine = 0;
  for_each_logit(row, [&](float logit) {
    if (unsigned_key(logit) >= key) mine += amount(row, summary, count, logit);
  });
  atomicAdd(&total, mine);
  __syncthreads();
  const Total result = total;
  __syncthreads();
  return result;
}

// The smallest key of a finite logit.
__device__ inline uint32_t smallest_key(const Row& row) {
  __shared__ uint32_t smallest;
  if (threadIdx.x == 0) smallest = 0xFFFFFFFFu;
  __syncthreads();
  uint32_t mine = 0xFFFFFFFFu;
  for_each_logit(row, [&](float logit) {
    const uint32_t key = unsigned_key(logit);
    mine = key < mine ? key : mine;
  });
  atomicMin(&smallest, mine);
  __syncthreads();
  const uint32_t result = smallest;
  __syncthreads();
  return result;
}

struct Digit {
  uint32_t value;
  Total above;  // sum over all greater ones
};

// By one warp: the largest digit from which on the histogram, on top of `above`, sums up to `wanted`. It exists.
__device__ inline Digit find_digit(const Total* histogram, Total above, double wanted) {
  constexpr int kSegment = kDigits / kRowLanes;
  const Total* segment = histogram + this_lane() * kSegment;
  Total mine = 0;
  for (int d = 0; d < kSegment; ++d) mine += segment[d];
  Total in_front = above;  // of this lane's segment: those of the lanes behind it
  for (int lane = kRowLanes - 1; lane > 0; --lane) {
    const Total other = __shfl_sync(kFullMask, mine, lane);
    if (lane > this_lane()) in_front += other;
  }
  const uint32_t reaching = __ballot_sync(kFullMask, static_cast<double>(in_front + mine) >= wanted);
  const int owner = 31 - __clz(static_cast<int>(reaching));
  int digit = kSegment - 1;
  if (this_lane() == owner) {
    while (digit > 0 && static_cast<double>(in_front + segment[digit]) < wanted) in_front += segment[digit--];
  }
  const uint32_t value = static_cast<uint32_t>(this_lane() * kSegment + digit);
  return Digit{__shfl_sync(kFullMask, value, owner), __shfl_sync(kFullMask, in_front, owner)};
}

// The largest key from which on the tokens (or masses) sum up to `wanted` (> 0) or more; all of them must.
__device__ inline uint32_t select_key(const Row& row, const RowSummary& summary, Count count, double wanted) {
  __shared__ Total histogram[kDigits];
  __shared__ Digit found;
  uint32_t prefix = 0;
  Total above = 0;
  for (int pass = 0; pass < 3; ++pass) {
    const int shift = pass == 0 ? 21 : pass == 1 ? 10 : 0, bits = pass == 2 ? 10 : kDigitBits;
    for (int d = static_cast<int>(threadIdx.x); d < kDigits; d += static_cast<int>(blockDim.x)) histogram[d] = 0;
    __syncthreads();
    for_each_logit(row, [&](float logit) {
      const uint32_t key = unsigned_key(logit);
      if (pass > 0 && key >> (shift + bits) != prefix) return;
      atomicAdd(&histogram[key >> shift & ((1u << bits) - 1)], amount(row, summary, count, logit));
    });
    __syncthreads();
    if (this_warp() == 0) {
      const Digit digit = find_digit(histogram, above, wanted);
      if (this_lane() == 0) found = digit;
    }
    __syncthreads();
    prefix = prefix << bits | found.value;
    above = found.above;
  }
  return prefix;
}

__device__ inline float top_threshold(const Row& row, const RowSummary& summary, int64_t top_k, double top_p) {
  uint32_t low = smallest_key(row);
  double total = summary.sum;
  if (top_k > 0) {
    if (total_from(row, summary, Count::kTokens, 0) > static_cast<Total>(top_k))
      low = select_key(row, summary, Count::kTokens, static_cast<double>(top_k));
    total = static_cast<double>(total_from(row, summary, Count::kMasses, low)) / kMassUnit;
  }
  if (top_p < 1.0) {
    const double wanted = rounded_multiply(rounded_multiply(top_p, total), kMassUnit);
    if (static_cast<double>(total_from(row, summary, Count::kMasses, low)) >= wanted) {
      const uint32_t key = select_key(row, summary, Count::kMasses, wanted);
      low = key > low ? key : low;
    }
  }
  return logit_of_key(low);
}

__device__ inline float cutoff_of_row(const LogitCutoffParams& p, int64_t b, ChunkStats* chunks) {
  const float temperature = p.temperature[b];
  const Row row = make_row(p.logits, b, 0, p.V, temperature, nullptr);
  const bool use_top_k = p.top_k[b] > 0 && p.top_k[b] < p.V, use_top_p = p.top_p[b] < 1.0f;
  const Read read = use_top_p && !use_top_k && temperature > 0.0f ? Read::kSums : Read::kMax;
  read_row(row, read, chunks);
  const RowSummary summary = summarize(chunks, chunks_of(row.size), row.inv_temperature, read);
  if (!summary.valid) return bits_float(0x7FC00000u);
  if (temperature == 0.0f) return summary.max;
  float cutoff = -kInfinity;
  if (use_top_k || use_top_p)
    cutoff = top_threshold(row, summary, use_top_k ? p.top_k[b] : 0, static_cast<double>(p.top_p[b]));
  if (p.min_p[b] > 0.0f) {
    const float least = p.min_p[b] > 1e-37f ? p.min_p[b] : 1e-37f;
    const float threshold = fused_multiply_add(log_positive(least), temperature, summary.max);
    cutoff = threshold > cutoff ? threshold : cutoff;
  }
  return cutoff < summary.max ? cutoff : summary.max;
}

__global__ void __launch_bounds__(kCutoffWarps* kRowLanes) logit_cutoff_kernel(LogitCutoffParams p) {
  SB_DYNAMIC_SHARED(ChunkStats, chunks);
  const float cutoff = cutoff_of_row(p, blockIdx.x, chunks);
  if (threadIdx.x == 0) p.cutoff[blockIdx.x] = given_cutoff(cutoff);
}

inline void run_logit_cutoff(const LogitCutoffParams& p, Stream stream) {
  if (p.B == 0) return;
  const int64_t num_chunks = chunks_of(p.V);
  launch(logit_cutoff_kernel, dim3(static_cast<unsigned>(p.B)), dim3(threads_for(num_chunks, kCutoffWarps)),
         static_cast<size_t>(num_chunks) * sizeof(ChunkStats), stream, p);
}

}  // namespace specbranch::SB_GPU
