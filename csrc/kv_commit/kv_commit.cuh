// The slots of the kept path become contiguous behind the prefix: all layers, K and V, in one launch.
//
//   cache[l, c, b, h, dst_start[b] + i, :] = cache[l, c, b, h, source_slots[b, i], :]     i = 0 .. length[b] - 1
//
// Layout: cache [L, 2, B, Hkv, S, D] contiguous, read as units of up to 16 bytes: U units per slot.
// Work:   a thread owns one column: unit u of one (l, c, b, h), L * 2 * B * Hkv * U columns in all, and moves its
// tokens
//         in order of i. Neighbouring threads own neighbouring units, so accesses coalesce. No two threads share a
//         byte: no barrier is needed, and as sources ascend and are never before their destinations, nothing is
//         overwritten before it has moved.
// Bound:  by latency (a dozen kilobytes per layer), hence one launch.
// Compiled by nvcc (kv_commit.cu) and, against simt/simt.h, by g++ (kv_commit_simt.cpp).
#pragma once

#include "ops.h"

namespace specbranch {

constexpr int kCommitThreads = 256;

struct CommitShape {
  int64_t columns;                      // L * 2 * B * Hkv * units
  int64_t units;                        // of one slot
  int64_t heads, batch, slots, tokens;  // Hkv, B, S, M
};

template <typename Unit>
__global__ void kv_commit_kernel(CommitShape shape, Unit* cache, const int32_t* source_slots, const int32_t* dst_start,
                                 const int32_t* length) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= shape.columns) return;
  const int64_t plane = column / shape.units;  // (l, c, b, h)
  const int64_t b = plane / shape.heads % shape.batch;
  Unit* slots = cache + plane * shape.slots * shape.units + column % shape.units;
  const int32_t* source = source_slots + b * shape.tokens;
  for (int64_t i = 0; i < length[b]; ++i) {
    const int64_t destination = dst_start[b] + i;
    if (source[i] != destination) slots[destination * shape.units] = slots[source[i] * shape.units];
  }
}

struct alignas(16) Unit16 {
  uint32_t words[4];
};

// Calls launch(Unit*, shape, blocks) with the widest unit that divides a slot.
template <typename Launch>
void with_commit_units(const KvCommitParams& p, const Launch& launch) {
  const int64_t bytes = p.D * (p.dtype == DType::kFloat32 ? 4 : 2);
  const auto go = [&](auto* cache) {
    const int64_t units = bytes / static_cast<int64_t>(sizeof(*cache)), columns = p.L * 2 * p.B * p.Hkv * units;
    const CommitShape shape{columns, units, p.Hkv, p.B, p.S, p.M};
    const auto blocks = static_cast<unsigned>((columns + kCommitThreads - 1) / kCommitThreads);
    if (blocks > 0 && p.M > 0) launch(cache, shape, blocks);
  };
  const bool aligned = reinterpret_cast<uintptr_t>(p.cache) % 16 == 0;
  if (aligned && bytes % 16 == 0) return go(static_cast<Unit16*>(p.cache));
  if (reinterpret_cast<uintptr_t>(p.cache) % 4 == 0 && bytes % 4 == 0) return go(static_cast<uint32_t*>(p.cache));
  go(static_cast<uint16_t*>(p.cache));
}

}  // namespace specbranch
