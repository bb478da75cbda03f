// Sums over a vector in a fixed order that every instruction set can keep: element i goes to lane i % 16, and the lanes
// are added pairwise at the end.
#pragma once

#include "common/element.h"

#define SB_INLINE static inline __attribute__((always_inline))

namespace specbranch {

constexpr int kLanes = 16;

SB_INLINE float add_lanes(float* lanes) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
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
