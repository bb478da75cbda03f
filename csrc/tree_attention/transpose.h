// A block of keys, slot after slot, to rows of one element each: a vector then holds that element of kFloats slots.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/lanes.h"
#include "common/vectors.h"

namespace specbranch::cpu {

typedef Vectors<4>::Float Quad;

// Lane i of a shuffle of a and b that does the same in every quad: there it takes kLanes[i % 4] of (a's quad, b's
// quad).
template <int... kPick>
constexpr int quad_lane(int i, int count) {
  constexpr int picks[] = {kPick...};
  const int pick = picks[i % 4];
  return i / 4 * 4 + pick % 4 + (pick >= 4 ? count : 0);
}

template <int... kPick, typename V, int... kLane>
SB_INLINE V shuffle_quads(const V& a, const V& b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, quad_lane<kPick...>(kLane, sizeof...(kLane))...);
}

template <typename V, typename Half, int... kLane>
SB_INLINE V join(const Half& low, const Half& high, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(low, high, kLane...);
}

// Quads of the keys 0, 4, 8, ...
template <int kFloats>
SB_INLINE typename Vectors<kFloats>::Float load_quads(const float* const* key) {
  if constexpr (kFloats == 4) {
    return *reinterpret_cast<const Quad*>(*key);
  } else {
    return join<typename Vectors<kFloats>::Float>(load_quads<kFloats / 2>(key),
                                                  load_quads<kFloats / 2>(key + kFloats / 2),
                                                  std::make_integer_sequence<int, kFloats>());
  }
}

// Four elements of kFloats keys, to four rows.
template <int kFloats>
SB_INLINE void transpose_quads(const float* const* key, float* out, int64_t row_stride) {
  using V = typename Vectors<kFloats>::Float;
  constexpr std::make_integer_sequence<int, kFloats> lanes;
  V in[4];
  for (int i = 0; i < 4; ++i) in[i] = load_quads<kFloats>(key + i);
  const V low01 = shuffle_quads<0, 4, 1, 5>(in[0], in[1], lanes),
          high01 = shuffle_quads<2, 6, 3, 7>(in[0], in[1], lanes);
  const V low23 = shuffle_quads<0, 4, 1, 5>(in[2], in[3], lanes),
          high23 = shuffle_quads<2, 6, 3, 7>(in[2], in[3], lanes);
  *reinterpret_cast<V*>(out) = shuffle_quads<0, 1, 4, 5>(low01, low23, lanes);
  *reinterpret_cast<V*>(out + row_stride) = shuffle_quads<2, 3, 6, 7>(low01, low23, lanes);
  *reinterpret_cast<V*>(out + 2 * row_stride) = shuffle_quads<0, 1, 4, 5>(high01, high23, lanes);
  *reinterpret_cast<V*>(out + 3 * row_stride) = shuffle_quads<2, 3, 6, 7>(high01, high23, lanes);
}

// Keys [count][width] to [width][row_stride]. Columns up to the next multiple of 16 repeat the last key.
template <int kFloats>
SB_INLINE void transpose(const float* keys, int64_t stride, int64_t count, int64_t width, float* out,
                         int64_t row_stride) {
  const int64_t columns = (count + kLanes - 1) / kLanes * kLanes;
  for (int64_t first = 0; first < columns; first += kFloats) {
    const float* key[kFloats];
    for (int64_t i = 0; i < kFloats; ++i) key[i] = keys + std::min(first + i, count - 1) * stride;
    for (int64_t d = 0; d < width; d += 4) {
      transpose_quads<kFloats>(key, out + d * row_stride + first, row_stride);
      for (int i = 0; i < kFloats; ++i) key[i] += 4;
    }
  }
}

}  // namespace specbranch::cpu
