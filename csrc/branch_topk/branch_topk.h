// How many branches a confidence buys, host and device alike: max(1, floor(k_max * (1 - confidence))), at most the
// number of candidates there are (SpecBranch, arXiv 2506.01979, its adaptive k).
#pragma once

#include "common/portable.h"

namespace specbranch {

SB_HD int32_t branch_count(int64_t k_max, float confidence, int64_t num_candidates) {
  const int64_t wanted = static_cast<int64_t>(static_cast<float>(k_max) * (1.0f - confidence));
  const int64_t at_least_one = wanted > 1 ? wanted : 1;
  return static_cast<int32_t>(at_least_one < num_candidates ? at_least_one : num_candidates);
}

}  // namespace specbranch
