// sample on the GPU: one token a row by inverse CDF (one uniform, tokens in index order) or by Gumbel-max, or argmax at
// temperature 0, with the probability of the token, the largest one and the entropy log(S) - sum(w * y) / S of
//   w = exp(y), y = (logit - max) / temperature, S = sum(w)     (temperature 1, nothing cut, where temperature is 0).
// Layout: logits [B, V], rows contiguous.
// Work:   one launch, a block a row, a warp a chunk of 1024 tokens; what is known of the chunks stays in shared memory
//         (16 bytes each). Warp 0 makes the summary and draws; a draw reads one chunk again, Gumbel all that can win.
// Bound:  arithmetic of one SM where B is small: about 25 instructions a token, 70 more with Gumbel noise.
// Order:  fixed in common/distribution.h.
#pragma once

#include "common/row.cuh"

namespace specbranch::SB_GPU {

constexpr int kSampleWarps = 8;  // more would have to do with 128 registers, in which Gumbel noise does not fit

// The token of warp 0's choice, or the block's best score: the same in all threads of warp 0.
__device__ inline int64_t draw_token(const SampleParams& p, int64_t b, const Row& row, const RowSummary& summary,
                                     const ChunkStats* chunks, const Best* bests) {
  const Mode mode = mode_of(p.draw, p.temperature[b]);
  if (mode == Mode::kGreedy) return argmax(row, summary, chunks);
  const uint32_t lane = p.lane != nullptr ? static_cast<uint32_t>(p.lane[b]) : 0;
  if (mode == Mode::kInverseCdf)
    return draw_inverse_cdf(row, summary, chunks, uniform(p.seed[b], p.position[b], lane, p.purpose));
  Best best{-kInfinity, -1};
  for (int w = 0; w < warps_of_block(); ++w) best = better(best, bests[w]);
  return best.token;
}

__device__ inline float entropy_of(const RowSummary& summary) {
  const float entropy =
      log_positive(static_cast<float>(summary.sum)) - static_cast<float>(summary.weighted / summary.sum);
  return entropy > 0.0f ? entropy : 0.0f;
}

__device__ inline void write_bad_row(const SampleParams& p, int64_t b) {
  p.token[b] = -1;
  p.probability[b] = p.max_probability[b] = p.entropy[b] = __builtin_nanf("");
}

__global__ void __launch_bounds__(kSampleWarps* kRowLanes) sample_kernel(SampleParams p) {
  SB_DYNAMIC_SHARED(ChunkStats, chunks);
  __shared__ Best bests[kSampleWarps];
  const int64_t b = blockIdx.x, num_chunks = chunks_of(p.V);
  const Row row = make_row(p.logits, b, 0, p.V, p.temperature[b], p.cutoff != nullptr ? p.cutoff + b : nullptr);
  read_row(row, Read::kEntropy, chunks);
  const RowSummary summary = summarize_max(chunks, num_chunks);
  if (mode_of(p.draw, p.temperature[b]) == Mode::kGumbel && summary.valid) {
    Best best{-kInfinity, -1};
    for (int64_t c = this_warp(); c < num_chunks; c += warps_of_block())
      best = better(best, gumbel_best(row, summary, chunks[c], p.seed[b], p.position[b], c));
    if (this_lane() == 0) bests[this_warp()] = best;
  }
  __syncthreads();
  if (this_warp() != 0) return;
  if (!summary.valid) {
    if (this_lane() == 0) write_bad_row(p, b);
    return;
  }
  const RowSummary whole = summarize(chunks, num_chunks, row.inv_temperature, Read::kEntropy);
  const int64_t token = draw_token(p, b, row, whole, chunks, bests);
  if (this_lane() != 0) return;
  p.token[b] = static_cast<int32_t>(token);
  p.probability[b] = probability_of(row, whole, token);
  p.max_probability[b] = whole.inv_sum;
  p.entropy[b] = entropy_of(whole);
}

inline void run_sample(const SampleParams& p, Stream stream) {
  if (p.B == 0) return;
  launch(sample_kernel, dim3(static_cast<unsigned>(p.B)), dim3(threads_for(chunks_of(p.V), kSampleWarps)),
         static_cast<size_t>(chunks_of(p.V)) * sizeof(ChunkStats), stream, p);
}

}  // namespace specbranch::SB_GPU
