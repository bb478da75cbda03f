// branch_topk on the GPU: the k best tokens of a row, best first, lowest index first among equals, where "best" is the
// logit, or for coupled draws (logit - max) / temperature + Gumbel noise; k = branch_count(k_max, confidence).
//
// Layout: logits [B, V], rows contiguous; candidates [B, K].
// Work:   one launch, a block a row, a warp a chunk of 1024 tokens. Shared memory keeps of each chunk its statistics
// and the
//         score of its best token that has not been chosen. Warp 0 then chooses k times: the chunk with the highest
//         score, in it the best token behind the one chosen last, and the score of the next one: one chunk is read a
//         choice.
// Bound:  arithmetic of one SM: about 25 instructions a token, 70 more with Gumbel noise; a microsecond or so a choice.
// Order:  of the confidence fixed in common/distribution.h; the choice has none.
#pragma once

#include "branch_topk/branch_topk.h"
#include "common/row.cuh"

namespace specbranch::SB_GPU {

constexpr int kBranchWarps = 8;

// What a row's candidates are ordered by.
struct Scores {
  const Row* row;
  const RowSummary* summary;
  Mode mode;
  int64_t seed, position;
};

// This lane's scores of a chunk; -inf for what is cut.
__device__ inline void load_scores(const Scores& s, int64_t chunk, Lane& scores) {
  if (s.mode == Mode::kGumbel) return gumbel_scores(*s.row, *s.summary, s.seed, s.position, chunk, scores);
  load_chunk(*s.row, chunk, scores);
  SB_UNROLL
  for (int g = 0; g < kGroups; ++g) scores[g] = scores[g] >= s.row->cutoff ? scores[g] : -kInfinity;
}

// The best of the warp's tokens that come behind `last` in the order (score down, token up); token -1: none.
__device__ inline Best best_behind(const Lane& scores, int64_t chunk, Best last) {
  Best best{-kInfinity, -1};
  SB_UNROLL
  for (int g = 0; g < kGroups; ++g) {
    const Best candidate{scores[g], static_cast<int32_t>(chunk * kChunk + g * kRowLanes + this_lane())};
    const bool behind = candidate.score < last.score || (candidate.score == last.score && candidate.token > last.token);
    if (behind && candidate.score > -kInfinity) best = better(best, candidate);
  }
  return warp_best(best);
}

// The chunk with the highest score, the first among equals; -1: nothing is left.
__device__ inline int64_t best_chunk(const float* left, int64_t num_chunks) {
  Best best{-kInfinity, -1};
  for (int64_t c = this_lane(); c < num_chunks; c += kRowLanes)
    if (left[c] > -kInfinity) best = better(best, Best{left[c], static_cast<int32_t>(c)});
  return warp_best(best).token;
}

// By warp 0; returns how many were found.
__device__ inline int32_t choose(const Scores& s, int64_t num_chunks, int32_t wanted, float* left,
                                 int32_t* candidates) {
  Best last{kInfinity, -1};
  for (int32_t chosen = 0; chosen < wanted; ++chosen) {
    const int64_t chunk = best_chunk(left, num_chunks);
    if (chunk < 0) return chosen;
    Lane scores;
    load_scores(s, chunk, scores);
    last = best_behind(scores, chunk, last);
    const Best next = best_behind(scores, chunk, last);
    __syncwarp();
    if (this_lane() == 0) {
      candidates[chosen] = last.token;
      left[chunk] = next.score;
    }
    __syncwarp();
  }
  return wanted;
}

// A block is a row, so one on a multiprocessor is enough; without the 1 ptxas makes room for two on sm_80, and spills.
__global__ void __launch_bounds__(kBranchWarps* kRowLanes, 1) branch_topk_kernel(BranchTopkParams p) {
  SB_DYNAMIC_SHARED(ChunkStats, chunks);
  const int64_t b = blockIdx.x, num_chunks = chunks_of(p.V);
  float* left = reinterpret_cast<float*>(chunks + num_chunks);
  const Row row = make_row(p.logits, b, 0, p.V, p.temperature[b], p.cutoff != nullptr ? p.cutoff + b : nullptr);
  const Mode mode = mode_of(p.draw, p.temperature[b]);
  read_row(row, Read::kSums, chunks);
  const RowSummary most = summarize_max(chunks, num_chunks);
  const bool gumbel = mode == Mode::kGumbel;
  const Scores s{&row, &most, mode, gumbel ? p.seed[b] : 0, gumbel ? p.position[b] : 0};
  for (int64_t c = this_warp(); c < num_chunks; c += warps_of_block()) {
    float score = chunks[c].max;
    if (gumbel && most.valid) {
      Lane scores;
      load_scores(s, c, scores);
      score = best_behind(scores, c, Best{kInfinity, -1}).score;
    }
    if (this_lane() == 0) left[c] = score;
  }
  __syncthreads();
  if (this_warp() != 0) return;
  int32_t* candidates = p.candidates + b * p.K;
  for (int64_t k = this_lane(); k < p.K; k += kRowLanes) candidates[k] = -1;
  const RowSummary whole = summarize(chunks, num_chunks, row.inv_temperature, Read::kSums);
  __syncwarp();
  const int32_t wanted = whole.valid && p.K > 0 ? branch_count(p.K, whole.inv_sum, p.K) : 0;
  const int32_t found = choose(s, num_chunks, wanted, left, candidates);
  if (this_lane() != 0) return;
  p.num_branches[b] = found;
  p.confidence[b] = whole.valid ? whole.inv_sum : bits_float(0x7FC00000u);
}

inline void run_branch_topk(const BranchTopkParams& p, Stream stream) {
  if (p.B == 0) return;
  const int64_t num_chunks = chunks_of(p.V);
  launch(branch_topk_kernel, dim3(static_cast<unsigned>(p.B)), dim3(threads_for(num_chunks, kBranchWarps)),
         static_cast<size_t>(num_chunks) * (sizeof(ChunkStats) + sizeof(float)), stream, p);
}

}  // namespace specbranch::SB_GPU
