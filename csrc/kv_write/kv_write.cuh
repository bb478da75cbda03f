// Keys and values of N new tokens go into their slots of one layer of the cache.
//
//   cache[0, b, h, slots[b, n], :] = key[b, n, h, :]        cache[1, ...] = value[b, n, h, :]
//
// Layout: key and value [B, N, Hkv, D] contiguous, read as units of up to 16 bytes: U units per head; cache strided.
// Work:   a thread moves one unit of the key and the same unit of the value; B * N * Hkv * U threads in all. Neighbours
//         read neighbouring units, and write them: a head is contiguous in the cache too. No barrier: slots of one row
//         are different, so no two threads share a byte.
// Bound:  by latency (a few kilobytes a layer), hence one launch for both.
// Slots outside -1 .. S - 1, which the host cannot see on the device, are skipped like -1.
#pragma once

#include "common/units.h"

namespace specbranch::SB_GPU {

constexpr int kWriteThreads = 128;

struct WriteShape {
  int64_t units, heads, tokens, slots;                        // of one head, Hkv, N, S
  int64_t threads;                                            // B * N * Hkv * units
  int64_t kv_stride, batch_stride, head_stride, slot_stride;  // in units
};

template <typename Unit>
__global__ void kv_write_kernel(WriteShape shape, const Unit* key, const Unit* value, const int32_t* slots,
                                Unit* cache) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= shape.threads) return;
  const int64_t unit = i % shape.units, head = i / shape.units % shape.heads, token = i / shape.units / shape.heads;
  const int64_t slot = slots[token];
  if (slot < 0 || slot >= shape.slots) return;
  Unit* destination =
      cache + token / shape.tokens * shape.batch_stride + head * shape.head_stride + slot * shape.slot_stride + unit;
  destination[0] = key[i];
  destination[shape.kv_stride] = value[i];
}

template <typename Unit>
void write_units(const KvWriteParams& p, Stream stream) {
  const int64_t size = element_size(p.dtype), bytes = static_cast<int64_t>(sizeof(Unit)), units = p.D * size / bytes;
  const auto in_units = [&](int64_t stride) { return stride * size / bytes; };
  const WriteShape shape{units,
                         p.Hkv,
                         p.N,
                         p.S,
                         p.B * p.N * p.Hkv * units,
                         in_units(p.cache.kv_stride),
                         in_units(p.cache.batch_stride),
                         in_units(p.cache.head_stride),
                         in_units(p.cache.slot_stride)};
  if (shape.threads == 0) return;
  launch(kv_write_kernel<Unit>, dim3(static_cast<unsigned>(ceil_div(shape.threads, kWriteThreads))),
         dim3(kWriteThreads), 0, stream, shape, static_cast<const Unit*>(p.key), static_cast<const Unit*>(p.value),
         p.slots, static_cast<Unit*>(p.cache.data));
}

inline void run_kv_write(const KvWriteParams& p, Stream stream) {
  const auto fits = [&](uint64_t bytes) {
    return aligned({p.key, p.value}, bytes) && aligned(p.cache, bytes) &&
           static_cast<uint64_t>(p.D * element_size(p.dtype)) % bytes == 0;
  };
  with_unit(fits, [&](auto unit) { write_units<decltype(unit)>(p, stream); });
}

}  // namespace specbranch::SB_GPU
