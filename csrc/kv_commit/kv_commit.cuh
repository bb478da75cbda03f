// The slots of the kept path become contiguous behind the prefix: all layers, K and V, in one launch.
//
//   cache[l, c, b, h, dst_start[b] + i, :] = cache[l, c, b, h, source_slots[b, i], :]     i = 0 .. length[b] - 1
//
// Layout: cache [L, 2, B, Hkv, S, D] contiguous, read as units of up to 16 bytes: U units per slot.
// Work:   a thread owns one column: unit u of one (l, c, b, h), L * 2 * B * Hkv * U columns in all, and moves its
//         tokens in order of i. Neighbouring threads own neighbouring units, so accesses coalesce. No two threads share
//         a byte: no barrier is needed, and as sources ascend and are never before their destinations, nothing is
//         overwritten before it has moved.
// Bound:  by latency (a dozen kilobytes per layer), hence one launch.
#pragma once

#include "common/units.h"

namespace specbranch::SB_GPU {

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

template <typename Unit>
void commit_units(const KvCommitParams& p, Stream stream) {
  const int64_t units = p.D * element_size(p.dtype) / static_cast<int64_t>(sizeof(Unit));
  const CommitShape shape{p.L * 2 * p.B * p.Hkv * units, units, p.Hkv, p.B, p.S, p.M};
  if (shape.columns == 0 || p.M == 0) return;
  launch(kv_commit_kernel<Unit>, dim3(static_cast<unsigned>(ceil_div(shape.columns, kCommitThreads))),
         dim3(kCommitThreads), 0, stream, shape, static_cast<Unit*>(p.cache), p.source_slots, p.dst_start, p.length);
}

// In the widest unit that divides a slot and to which the cache is aligned.
inline void run_kv_commit(const KvCommitParams& p, Stream stream) {
  const auto fits = [&](uint64_t bytes) {
    return aligned({p.cache}, bytes) && static_cast<uint64_t>(p.D * element_size(p.dtype)) % bytes == 0;
  };
  with_unit(fits, [&](auto unit) { commit_units<decltype(unit)>(p, stream); });
}

}  // namespace specbranch::SB_GPU
