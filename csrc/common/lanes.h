// Sums over a vector in a fixed order that every instruction set can keep: element i goes to lane i % 16, and the lanes
// are added pairwise at the end.
#pragma once

#include "common/element.h"

#define SB_INLINE static inline __attribute__((always_inline))

namespace specbranch {

constexpr int kLanes = 16;

// Lane i and i + 8, then i and i + 4, i + 2, i + 1: in vectors of four, as gcc alone would go through memory each time.
SB_INLINE float add_lanes(const float* lanes) {
  typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));
  const Quad* quads = reinterpret_cast<const Quad*>(lanes);
  const Quad sum = (quads[0] + quads[2]) + (quads[1] + quads[3]);
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

template <typename T>
SB_INLINE float sum_of_squares(const T* values, int64_t count) {
  float lanes[kLanes] = {};
  int64_t start = 0;
  for (; start + kLanes <= count; start += kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      const float value = to_float(values[start + i]);
      lanes[i] = fused_multiply_add(value, value, lanes[i]);
    }
  }
  for (int i = 0; start + i < count; ++i) {
    const float value = to_float(values[start + i]);
    lanes[i] = fused_multiply_add(value, value, lanes[i]);
  }
  return add_lanes(lanes);
}

}  // namespace specbranch
