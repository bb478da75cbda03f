// Storage types of tensor elements and their conversion to and from float32 by bit arithmetic, in loops that vectorise.
// Rounding is to nearest, ties to even; values above the range become infinity, NaN stays NaN.
#pragma once

#include "common/portable.h"
#include "ops.h"

namespace specbranch {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

SB_HD float to_float(float value) { return value; }

SB_HD float to_float(BFloat16 value) { return bits_float(static_cast<uint32_t>(value.bits) << 16); }

SB_HD float to_float(Float16 value) {
  const uint32_t magnitude = (value.bits & 0x7FFFu) << 13;
  // Read as float32 the exponent is 112 too small; the product is exact, for subnormal numbers too.
  const float scaled = bits_float(magnitude) * 0x1p112f;
  const bool special = magnitude >= 0x0F800000u;  // infinity and NaN
  const uint32_t bits = special ? magnitude | 0x7F800000u : float_bits(scaled);
  return bits_float(bits | static_cast<uint32_t>(value.bits & 0x8000u) << 16);
}

SB_HD void from_float(float value, float* out) { *out = value; }

SB_HD void from_float(float value, BFloat16* out) {
  const uint32_t bits = float_bits(value);
  const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  out->bits = static_cast<uint16_t>(is_nan ? bits >> 16 | 0x40u : rounded);
}

SB_HD void from_float(float value, Float16* out) {
  const uint32_t bits = float_bits(value), magnitude = bits & 0x7FFFFFFFu;
  const uint32_t normal = (magnitude - 0x38000000u + 0x0FFFu + (magnitude >> 13 & 1u)) >> 13;
  // Adding 0.5 aligns a value below 2^-14 so that the float32 addition does the rounding.
  const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3F000000u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477FF000u ? 0x7C00u : half;  // 65520 and above round to infinity
  half = magnitude > 0x7F800000u ? 0x7E00u : half;
  out->bits = static_cast<uint16_t>(half | (bits >> 16 & 0x8000u));
}

SB_HD int64_t element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

}  // namespace specbranch
