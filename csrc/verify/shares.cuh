// What the second launches of verify and verify_tree have in common: the workspace, and, for the coupled mode, the
// Gumbel noise of all rows, shared by all blocks that work on one batch row.
#pragma once

#include "common/residual.cuh"
#include "verify/verify_plan.h"

namespace specbranch::SB_GPU {

static_assert(sizeof(ChunkStats) == kChunkStatsBytes && sizeof(Best) == kShareBytes && sizeof(double) == kShareBytes,
              "verify_plan.h knows these sizes");

constexpr int32_t kBadRow = -1;  // in place of a token

// Batch row b's part of the workspace.
struct Shares {
  void* workspace;
  const VerifyPlan& plan;
  int64_t b;

  // Row r: of the target 0 .. targets - 1, of the draft behind them.
  __device__ ChunkStats* chunks(int64_t r) const {
    return static_cast<ChunkStats*>(workspace) + (b * plan.rows + r) * plan.chunks;
  }
  __device__ ChunkStats* draft_chunks(int64_t i) const { return chunks(plan.targets + i); }
  __device__ double* masses() const { return reinterpret_cast<double*>(at(plan.shares_offset)) + b * plan.chunks; }
  __device__ Best* bests(int64_t i) const {
    return reinterpret_cast<Best*>(at(plan.shares_offset)) + (b * plan.targets + i) * plan.chunks;
  }
  __device__ uint32_t* arrived() const { return reinterpret_cast<uint32_t*>(at(plan.arrived_offset)) + b; }

 private:
  __device__ char* at(int64_t offset) const { return static_cast<char*>(workspace) + offset; }
};

// A count that the host could not check, brought into 0 .. high.
__device__ inline int32_t clamp_count(int32_t count, int64_t high) {
  return count < 0 ? 0 : count > high ? static_cast<int32_t>(high) : count;
}

// This block's part of the noise of target rows 0 .. num_rows - 1; contiguous for each warp, so that a row's maximum is
// looked up once. `View`: target_row(i), row_position(i), seed().
template <typename View>
__device__ void score_share(const View& view, const Shares& shares, int64_t num_rows, int64_t split) {
  const int64_t chunks = shares.plan.chunks, items = num_rows * chunks;
  const int64_t workers = shares.plan.splits * warps_of_block(), each = (items + workers - 1) / workers;
  const int64_t first = (split * warps_of_block() + this_warp()) * each;
  const int64_t end = first + each < items ? first + each : items;
  RowSummary summary{};
  for (int64_t item = first; item < end; ++item) {
    const int64_t i = item / chunks, c = item % chunks;
    if (item == first || c == 0) summary = summarize_max(shares.chunks(i), chunks);
    Best best{-kInfinity, -1};
    if (summary.valid)
      best = gumbel_best(view.target_row(i), summary, shares.chunks(i)[c], view.seed(), view.row_position(i), c);
    if (this_lane() == 0) shares.bests(i)[c] = best;
  }
}

// The best token of a row whose chunks have been scored.
__device__ inline int32_t best_token(const Best* bests, int64_t num_chunks) {
  Best best{-kInfinity, -1};
  for (int64_t c = this_lane(); c < num_chunks; c += kRowLanes) best = better(best, bests[c]);
  return warp_best(best).token;
}

}  // namespace specbranch::SB_GPU
