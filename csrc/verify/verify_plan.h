// How the two launches of verify and verify_tree share the work, and where in the workspace the first leaves what the
// second needs.
#pragma once

#include "common/distribution.h"
#include "ops.h"

namespace specbranch {

constexpr int kVerifyWarps = 8;  // of a block
constexpr int kChunkStatsBytes = 16, kShareBytes = 8;

// Blocks that are to work on one launch: about one for each SM of a large GPU (132 on H100). More only repeat, block by
// block, what all of them must know.
constexpr int64_t kVerifyBlocks = 128;

struct VerifyPlan {
  int64_t rows;     // of logits a batch row has: the target's first, then the draft's
  int64_t targets;  // of them the target's
  int64_t chunks;   // of a row
  int64_t groups;   // blocks of the first launch on one row: a warp a chunk
  int64_t splits;   // blocks of the second launch on one batch row
  // The workspace, from its start, 16-byte aligned:
  //   stats    ChunkStats [B, rows, chunks]
  //   shares   [B, targets, chunks] the best of a chunk (coupled), or [B, chunks] masses of a residual (float64)
  //   arrived  uint32 [B]
  int64_t shares_offset, arrived_offset, workspace_bytes;
};

inline VerifyPlan plan_rows(int64_t B, int64_t targets, int64_t drafts, int64_t V, Draw draw) {
  VerifyPlan plan{};
  plan.rows = targets + drafts;
  plan.targets = targets;
  plan.chunks = chunks_of(V);
  plan.groups = (plan.chunks + kVerifyWarps - 1) / kVerifyWarps;
  const int64_t useful = draw == Draw::kGumbel ? targets * plan.groups : plan.groups;
  const int64_t wanted = kVerifyBlocks / (B > 0 ? B : 1);
  plan.splits = wanted < 1 ? 1 : wanted < useful ? wanted : useful;
  plan.shares_offset = B * plan.rows * plan.chunks * kChunkStatsBytes;
  plan.arrived_offset = plan.shares_offset + B * targets * plan.chunks * kShareBytes;
  plan.workspace_bytes = plan.arrived_offset + B * static_cast<int64_t>(sizeof(uint32_t));
  return plan;
}

inline VerifyPlan plan_verify(int64_t B, int64_t G, int64_t V, Draw draw) { return plan_rows(B, G + 1, G, V, draw); }

inline VerifyPlan plan_verify_tree(int64_t B, int64_t N, int64_t V, Draw draw) {
  return plan_rows(B, N + 1, N + 1, V, draw);
}

}  // namespace specbranch
