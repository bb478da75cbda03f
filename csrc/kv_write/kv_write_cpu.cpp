// Keys and values of N new tokens go into their slots of one layer of the cache.
//
//   cache[0, b, h, slots[b, n], :] = key[b, n, h, :]        cache[1, ...] = value[b, n, h, :]
//
// Layout: key and value [B, N, Hkv, D] contiguous; cache strided, its last dimension contiguous; slot -1: skip.
// Work:   one memcpy of D elements per (token, head, K or V); bound by memory bytes; too small for threads.
#include <cstring>

#include "common/element.h"
#include "ops.h"

namespace specbranch::cpu {

void kv_write(const KvWriteParams& p) {
  const int64_t size = element_size(p.dtype), head_bytes = p.D * size;
  const CacheLayer& cache = p.cache;
  for (int64_t token = 0; token < p.B * p.N; ++token) {
    const int64_t slot = p.slots[token];
    if (slot < 0) continue;
    const int64_t start = (token / p.N) * cache.batch_stride + slot * cache.slot_stride;
    for (int64_t head = 0; head < p.Hkv; ++head) {
      const int64_t source = (token * p.Hkv + head) * head_bytes;
      char* destination = static_cast<char*>(cache.data) + (start + head * cache.head_stride) * size;
      std::memcpy(destination, static_cast<const char*>(p.key) + source, head_bytes);
      std::memcpy(destination + cache.kv_stride * size, static_cast<const char*>(p.value) + source, head_bytes);
    }
  }
}

}  // namespace specbranch::cpu
