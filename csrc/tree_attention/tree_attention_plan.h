// How the attention kernels split their work; known on the host from shapes alone, never from lengths, so that a graph
// captured once serves every length.
//
// The rows of one key-value head are its query heads times the nodes: row r is node r / group, head r % group of the
// group. Row tiles, splits of the slots, key-value heads and batch rows make the grid. Which slots a split takes is
// decided on the device: the tiles of slots that can be visible, shared out evenly in one piece each.
#pragma once

#include "common/aligned.h"
#include "ops.h"

namespace specbranch {

struct AttentionPlan {
  bool on_tensor_cores;
  int rows, group;              // rows of one key-value head, query heads of it
  int row_tile, num_row_tiles;  // rows of a block
  int slot_tile, num_splits;    // slots taken at once; blocks that share the slots of one row tile
  float *max, *total;           // workspace [B, Hkv, splits, rows]: largest score * log2(e), sum of weights
  float* sums;                  // workspace [B, Hkv, splits, rows, D]: sum of weight * value
};

// Two blocks for each multiprocessor of an H100, so that one sequence fills it.
constexpr int64_t kWantedBlocks = 264;
constexpr int kGroupRows = 16;  // rows of one mma
constexpr int kMmaSlots = 64;
constexpr int kPlainSlots = 32;
constexpr int64_t kWidestHead = 512;

inline bool fits_tensor_cores(const TreeAttentionParams& p) {
  const bool known = p.D == 32 || p.D == 64 || p.D == 80 || p.D == 96 || p.D == 128;
  return p.dtype != DType::kFloat32 && known && aligned({p.q}, 4) && aligned(p.cache, 16);
}

inline AttentionPlan attention_plan(const TreeAttentionParams& p) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  AttentionPlan plan{};
  plan.on_tensor_cores = fits_tensor_cores(p);
  plan.group = static_cast<int>(p.Hq / p.Hkv);
  plan.rows = static_cast<int>(p.N) * plan.group;
  // Four warps: side by side over the rows where there are many, else over the slots.
  const int tall = plan.rows <= kGroupRows ? 1 : plan.rows <= 2 * kGroupRows ? 2 : 4;
  const int plain_rows = p.D <= 256 ? 16 : 4;
  plan.row_tile = plan.on_tensor_cores ? tall * kGroupRows : plain_rows;
  plan.slot_tile = plan.on_tensor_cores ? kMmaSlots : kPlainSlots;
  plan.num_row_tiles = static_cast<int>(ceil_div(plan.rows, plan.row_tile));
  const int64_t blocks = p.B * p.Hkv * plan.num_row_tiles, tiles = ceil_div(p.S, plan.slot_tile);
  const int64_t wanted = blocks > 0 ? ceil_div(kWantedBlocks, blocks) : 1;
  plan.num_splits = static_cast<int>(wanted < tiles ? wanted : tiles > 0 ? tiles : 1);
  const int64_t partials = p.B * p.Hkv * plan.num_splits * plan.rows;
  plan.max = static_cast<float*>(p.workspace);
  plan.total = plan.max + partials;
  plan.sums = plan.total + partials;
  return plan;
}

// Bytes of workspace that the kernels want for these shapes.
inline int64_t tree_attention_workspace_bytes(const TreeAttentionParams& p) {
  if (p.Hkv == 0) return 0;
  const AttentionPlan plan = attention_plan(p);
  if (plan.num_splits == 1) return 0;
  return p.B * p.Hkv * plan.num_splits * plan.rows * (p.D + 2) * static_cast<int64_t>(sizeof(float));
}

}  // namespace specbranch
