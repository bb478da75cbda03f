// What both sides of logit_cutoff count with: logits as ordered integers, probabilities as fixed-point ones, whose sums
// have no order that could matter.
#pragma once

#include "common/portable.h"

namespace specbranch {

constexpr double kMassUnit = 1099511627776.0;  // 2^40

// Order-preserving map of floats to integers; -0 and +0 are one.
SB_HD int32_t order_key(float value) {
  const int32_t bits = static_cast<int32_t>(float_bits(value + 0.0f));
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

SB_HD float key_value(int32_t key) { return bits_float(static_cast<uint32_t>(key ^ ((key >> 31) & 0x7FFFFFFF))); }

// A cutoff as it is given: 0 where it is -0, which of the two a maximum finds is the backend's own affair.
SB_HD float given_cutoff(float cutoff) { return cutoff + 0.0f; }

// Of a weight relative to the row's maximum.
SB_HD int64_t mass_of(float weight) { return static_cast<int64_t>(static_cast<double>(weight) * kMassUnit); }

}  // namespace specbranch
