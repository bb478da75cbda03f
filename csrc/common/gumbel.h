// Gumbel noise of the coupled mode: g = -log(E), E = -log(1 - u) exponential, u from 32 bits of Philox, kept as a float
// near 0 so that large g (small u) are finely resolved: g spans [-2.82, 22.9].
// One Philox block serves four tokens of a chunk of 1024 that lie 256 apart, so that the four words of consecutive
// blocks are four contiguous runs (vector stores on a CPU, coalesced lanes on a GPU):
//   counter word 2 = (token / 1024) * 256 + token % 256,   word used = (token / 256) % 4.
#pragma once

#include "common/fast_math.h"
#include "common/philox.h"

namespace specbranch {

constexpr float kGumbelMax = 23.0f;

SB_HD float gumbel_from_word(uint32_t word) {
  const float u = fused_multiply_add(static_cast<float>(word), 2.3283064e-10f, 1.1641532e-10f);  // 2^-32, 2^-33
  const float below_one = u < 0.99999994f ? u : 0.99999994f;
  return -log_positive(-log1p_negative(below_one));
}

SB_HD uint32_t gumbel_counter(int64_t token) { return static_cast<uint32_t>((token >> 10) * 256 + (token & 255)); }

SB_HD float gumbel_noise(int64_t seed, int64_t position, int64_t token) {
  const PhiloxBlock block = philox_at(seed, position, gumbel_counter(token), kPurposeGumbel);
  return gumbel_from_word(block.word[(token >> 8) & 3]);
}

}  // namespace specbranch
