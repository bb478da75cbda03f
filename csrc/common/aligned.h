// Whether memory may be accessed in units of several elements.
#pragma once

#include <initializer_list>

#include "common/element.h"
#include "ops.h"

namespace specbranch {

inline bool aligned(std::initializer_list<const void*> pointers, uint64_t bytes) {
  for (const void* pointer : pointers)
    if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) return false;
  return true;
}

// Every step of the cache layer, and its beginning, is a multiple of `bytes`.
inline bool aligned(const CacheLayer& cache, uint64_t bytes) {
  const int64_t strides[] = {cache.kv_stride, cache.batch_stride, cache.head_stride, cache.slot_stride};
  for (const int64_t stride : strides)
    if (stride * element_size(cache.dtype) % static_cast<int64_t>(bytes) != 0) return false;
  return aligned({cache.data}, bytes);
}

}  // namespace specbranch
