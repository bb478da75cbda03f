// The acceptance rule, host and device alike.
//   accept drafted token x at position i:  u * draft_probability(x) < target_probability(x),  u uniform in [0, 1)
//   after a rejection:                     draw from norm(max(0, target - draft)), inverse CDF
//   after a full chain:                    draw y from the target; y survives as branch k if y = branch_tokens[k]
// No division and no epsilon: u < 1, so equal rows always accept, and a token the target cannot produce never is.
// (Leviathan et al. 2023; the branch rule is SpecBranch's, arXiv 2506.01979.)
#pragma once

#include "common/philox.h"

namespace specbranch {

SB_HD bool accepts(double u, float draft_probability, float target_probability) {
  return u * static_cast<double>(draft_probability) < static_cast<double>(target_probability);
}

// The r-th sampled sibling at a position has its own uniform; a chain's tokens are r = 0.
SB_HD double accept_uniform(int64_t seed, int64_t position, uint32_t sibling) {
  return uniform(seed, position, sibling, kPurposeAccept);
}

// All of the target's own draws at a position share one uniform: exactly one of them happens.
SB_HD double recover_uniform(int64_t seed, int64_t position) { return uniform(seed, position, 0, kPurposeRecover); }

// The lowest index whose token matches; -1: none.
SB_HD int32_t match_branch(const int32_t* tokens, int32_t count, int32_t token) {
  for (int32_t k = 0; k < count; ++k)
    if (tokens[k] == token) return k;
  return -1;
}

}  // namespace specbranch
