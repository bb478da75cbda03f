// What "the distribution of a row of logits" means, to the bit, for every op on every backend.
//
//   kept:        logit >= cutoff (no cutoff: -inf); at temperature 0 cutoffs are ignored
//   probability: exp((logit - max) * (1 / temperature)) * (1 / sum), float32, max over the kept logits
//   sum:         chunks of kChunk tokens. In a chunk lane l of kRowLanes adds tokens l, l + 32, ... in order (float32,
//   relative
//                to the chunk's own max), the lanes are added by a butterfly (16, 8, 4, 2, 1), and chunk sums, rescaled
//                to the row's max, are added in order in float64. A warp and an AVX register do this alike, and how
//                many threads share the chunks changes nothing.
//   bad rows:    a NaN or +inf logit, or no finite one that is kept: no token is drawn, -1 is reported.
// Temperature 0 is argmax (lowest index on ties); where a probability is asked for all the same, it is that of
// temperature 1.
#pragma once

#include "common/fast_math.h"

namespace specbranch {

constexpr int kChunk = 1024;
constexpr int kRowLanes = 32;
constexpr int kGroups = kChunk / kRowLanes;
constexpr float kMaxInverseTemperature = 1e38f;

SB_HD int64_t chunks_of(int64_t size) { return (size + kChunk - 1) / kChunk; }

struct RowSummary {
  float max;      // of the kept logits
  float inv_sum;  // 1 / sum of exp((logit - max) / temperature): also the largest probability
  double sum;
  double weighted;  // sum of exp(y) * y, y = (logit - max) / temperature: entropy = log(sum) - weighted / sum
  bool valid;
};

SB_HD float inverse_temperature(float temperature) {
  if (temperature == 0.0f) return 1.0f;
  const float inverse = 1.0f / temperature;
  return inverse < kMaxInverseTemperature ? inverse : kMaxInverseTemperature;
}

SB_HD float probability(float logit, float cutoff, float inv_temperature, float max, float inv_sum) {
  return logit >= cutoff ? rounded_multiply(exp_nonpositive((logit - max) * inv_temperature), inv_sum) : 0.0f;
}

// One round of the residual: max(0, current - draft_probability) * scale, scale = 1 / mass (1: not normalised).
SB_HD float residual_weight(float current, float draft_probability, float scale) {
  return current > draft_probability ? rounded_multiply(current - draft_probability, scale) : 0.0f;
}

}  // namespace specbranch
