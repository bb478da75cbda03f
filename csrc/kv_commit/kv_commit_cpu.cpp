// The slots of the kept path become contiguous behind the prefix: all layers, K and V.
//
//   cache[l, c, b, h, dst_start[b] + i, :] = cache[l, c, b, h, source_slots[b, i], :]     i = 0 .. length[b] - 1
//
// Layout: cache [L, 2, B, Hkv, S, D] contiguous.
// Order:  sources ascend strictly and source i is never before destination i, so that moving in order of i overwrites
//         only what has moved already; a token that is in place costs nothing.
// Work:   one memcpy of D elements per (layer, K or V, head, token); bound by memory bytes, at most gamma tokens.
#include <cstring>

#include "common/element.h"
#include "ops.h"

namespace specbranch::cpu {

void kv_commit(const KvCommitParams& p) {
  const int64_t bytes = p.D * element_size(p.dtype);
  for (int64_t plane = 0; plane < p.L * 2 * p.B; ++plane) {
    const int64_t b = plane % p.B;
    const int32_t* source = p.source_slots + b * p.M;
    for (int64_t head = 0; head < p.Hkv; ++head) {
      char* slots = static_cast<char*>(p.cache) + (plane * p.Hkv + head) * p.S * bytes;
      for (int64_t i = 0; i < p.length[b]; ++i) {
        const int64_t destination = p.dst_start[b] + i;
        if (source[i] != destination) std::memcpy(slots + destination * bytes, slots + source[i] * bytes, bytes);
      }
    }
  }
}

}  // namespace specbranch::cpu
