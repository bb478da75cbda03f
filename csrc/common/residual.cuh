// The residual of rejection sampling on the GPU, by warps: what Residual is in row_cpu.h, and the same bits.
//   f_0 = target probability,  f_k = max(0, f_{k-1} - draft probability) * scales[k-1],  k = 1 .. num_scales
//   weight = max(0, f_n - draft probability), n = num_scales; a chunk's mass is the sum of its weights.
// A mass needs both rows of logits once more; a draw one chunk of them.
#pragma once

#include "common/row.cuh"

namespace specbranch::SB_GPU {

struct Residual {
  Row target, draft;
  RowSummary target_summary, draft_summary;
  const float* scales;
  int num_scales;
};

// This lane's probabilities of a chunk.
__device__ inline void chunk_probabilities(const Row& row, const RowSummary& summary, int64_t chunk, Lane& values) {
  chunk_weights(row, chunk, summary.max, values);
  SB_UNROLL
  for (int g = 0; g < kGroups; ++g) values[g] = rounded_multiply(values[g], summary.inv_sum);
}

// This lane's weights of a chunk.
__device__ inline void residual_weights(const Residual& r, int64_t chunk, Lane& weights) {
  Lane draft;
  chunk_probabilities(r.target, r.target_summary, chunk, weights);
  chunk_probabilities(r.draft, r.draft_summary, chunk, draft);
  for (int k = 0; k < r.num_scales; ++k) {
    SB_UNROLL
    for (int g = 0; g < kGroups; ++g) weights[g] = residual_weight(weights[g], draft[g], r.scales[k]);
  }
  SB_UNROLL
  for (int g = 0; g < kGroups; ++g) weights[g] = residual_weight(weights[g], draft[g], 1.0f);
}

// Masses of the chunks first, first + step, ...: one warp's part.
__device__ inline void residual_masses(const Residual& residual, int64_t first, int64_t step, double* masses) {
  for (int64_t c = first; c < chunks_of(residual.target.size); c += step) {
    Lane weights;
    residual_weights(residual, c, weights);
    const double mass = static_cast<double>(chunk_sum(weights));
    if (this_lane() == 0) masses[c] = mass;
  }
}

// The running sum of chunk masses (shared or global memory) up to where it exceeds `target`, or to the end.
__device__ inline Scan scan_masses(const double* masses, int64_t num_chunks, double target) {
  Scan scan(target);
  for (int64_t first = 0; first < num_chunks && !scan.found; first += kRowLanes) {
    const int count = lanes_in_use(num_chunks - first);
    scan.add(this_lane() < count ? masses[first + this_lane()] : 0.0, first, count);
  }
  return scan;
}

__device__ inline double total_mass(const double* masses, int64_t num_chunks) {
  return scan_masses(masses, num_chunks, static_cast<double>(kInfinity)).running;
}

// Inverse CDF in token order; the masses are the residual's own and their total is > 0.
__device__ inline int64_t draw_residual(const Residual& residual, const double* masses, double total, double u) {
  const Scan scan = scan_masses(masses, chunks_of(residual.target.size), rounded_multiply(u, total));
  Lane weights;
  residual_weights(residual, scan.picked, weights);
  return scan.picked * kChunk + pick_in_chunk(weights, 1.0, scan.target - scan.before);
}

}  // namespace specbranch::SB_GPU
