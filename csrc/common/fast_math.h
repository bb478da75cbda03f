// exp and log in float32 with the same bits on every backend: argument reduction and minimax polynomials (our own fit,
// Lawson iteration in float64) in explicit fma, no branches, no libm, so that loops over them vectorise and decisions
// made on the CPU, under simt and on CUDA agree. Errors against float64, tested in tests/ops/test_philox.py:
//   exp_nonpositive <= 2 ulp;  log_positive <= 2 ulp;  log1p_negative <= 4 ulp.
#pragma once

#include "common/portable.h"

namespace specbranch {

constexpr float kInfinity = __builtin_huge_valf();
constexpr float kExpFloor = -87.0f;  // below it exp_nonpositive is 0: no subnormal results

// exp(x) for x <= 0; -inf gives 0.
SB_HD float exp_nonpositive(float x) {
  const float clamped = x > kExpFloor ? x : kExpFloor;
  const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const float shifted = fused_multiply_add(clamped, 1.44269504f, shifter);
  const float n = shifted - shifter;
  float r = fused_multiply_add(n, -0.693145752f, clamped);  // ln 2 in two parts
  r = fused_multiply_add(n, -1.42860677e-6f, r);
  float p = 0.0013814599f;
  p = fused_multiply_add(p, r, 0.008368717f);
  p = fused_multiply_add(p, r, 0.04166839f);
  p = fused_multiply_add(p, r, 0.16666521f);
  p = fused_multiply_add(p, r, 0.49999994f);
  const float tail = fused_multiply_add(p, r * r, r);
  const uint32_t exponent = (float_bits(shifted) - float_bits(shifter)) << 23;
  const float result = bits_float(float_bits(tail + 1.0f) + exponent);
  return x < kExpFloor ? 0.0f : result;
}

// n * ln 2 + log(1 + s) for s in [sqrt(1/2) - 1, sqrt(2) - 1].
SB_HD float log_from_parts(float n, float s) {
  float p = -0.07634497f;
  p = fused_multiply_add(p, s, 0.12761576f);
  p = fused_multiply_add(p, s, -0.13160183f);
  p = fused_multiply_add(p, s, 0.14201757f);
  p = fused_multiply_add(p, s, -0.16623357f);
  p = fused_multiply_add(p, s, 0.20001227f);
  p = fused_multiply_add(p, s, -0.2500082f);
  p = fused_multiply_add(p, s, 0.3333333f);
  const float square = s * s;
  float tail = fused_multiply_add(p, s, -0.5f) * square;
  tail = fused_multiply_add(n, 1.42860677e-6f, tail);
  return fused_multiply_add(n, 0.693145752f, s + tail);
}

// x = 2^n * (1 + s), x positive and normal.
SB_HD float split_exponent(float x, float* n) {
  const uint32_t offset = float_bits(x) - 0x3F3504F3u;  // sqrt(1/2)
  const int32_t exponent = static_cast<int32_t>(offset) >> 23;
  *n = static_cast<float>(exponent);
  return bits_float(float_bits(x) - (static_cast<uint32_t>(exponent) << 23)) - 1.0f;
}

SB_HD float log_positive(float x) {
  float n;
  const float s = split_exponent(x, &n);
  return log_from_parts(n, s);
}

// log(1 - u) for u in (0, 1): full relative precision for small u too.
SB_HD float log1p_negative(float u) {
  float n;
  const float s = split_exponent(1.0f - u, &n);
  return log_from_parts(n, n == 0.0f ? -u : s);
}

}  // namespace specbranch
