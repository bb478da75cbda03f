// verify on the CPU. Formula: verify.h; probabilities: common/distribution.h.
// Layout: target_logits [B, G+1, V], draft_logits [B, G, V], rows contiguous.
// Work split: one batch row a thread when B > 1 and the work is big; else a row's chunks over the threads. Positions
// are visited in order and the walk stops at the first rejection, so rows behind it are neither read nor checked for
// NaN. Bound: one exp per logit read; a rejection reads its two rows once more for the residual. Reduction order: fixed
// in common/distribution.h.
#include "common/parallel.h"
#include "common/row_cpu.h"
#include "verify/verify.h"

namespace specbranch::cpu {
namespace {

struct Outcome {
  int32_t num_accepted, next_token, survivor;
};
constexpr Outcome kBadRow{-1, -1, -1};

class Chain {
 public:
  Chain(const VerifyParams& params, int64_t b)
      : p_(params), b_(b), mode_(mode_of(params.draw, params.temperature[b])) {}

  Outcome run() {
    const int32_t length = p_.chain_length[b_];
    for (int32_t i = 0; i < length; ++i) {
      const int32_t drafted = p_.draft_tokens[b_ * p_.G + i];
      const int32_t token = mode_ == Mode::kInverseCdf ? accept_or_recover(i, drafted) : target_token(i);
      if (token < 0) return kBadRow;
      if (token != drafted || rejected_) return {i, token, -1};
    }
    const int32_t token = target_token(length);
    if (token < 0) return kBadRow;
    return {length, token, match_branch(p_.branch_tokens + b_ * p_.K, p_.num_branches[b_], token)};
  }

 private:
  Row target_row(int64_t i) const {
    const float* cutoff = p_.target_cutoff ? p_.target_cutoff + b_ * (p_.G + 1) + i : nullptr;
    return make_row(p_.target_logits, b_, i, p_.V, p_.temperature[b_], cutoff);
  }

  Row draft_row(int64_t i) const {
    const float* cutoff = p_.draft_cutoff ? p_.draft_cutoff + b_ * p_.G + i : nullptr;
    return make_row(p_.draft_logits, b_, i, p_.V, p_.temperature[b_], cutoff);
  }

  int32_t target_token(int64_t i) {
    const DrawKey key{mode_, p_.seed[b_], p_.position[b_] + i, 0, kPurposeRecover};
    return static_cast<int32_t>(read_and_draw(target_row(i), key, scratch_));
  }

  // The drafted token if it is accepted, else (and rejected_ is set) a token of the residual; -1: bad row.
  int32_t accept_or_recover(int64_t i, int32_t drafted) {
    Residual residual{target_row(i), draft_row(i), {}, {}, nullptr, 0};
    residual.draft_summary = read_sums(residual.draft, scratch_);
    residual.target_summary = read_sums(residual.target, scratch_);
    if (!residual.draft_summary.valid || !residual.target_summary.valid) return -1;
    const double u = accept_uniform(p_.seed[b_], p_.position[b_] + i, 0);
    if (accepts(u, probability_of(residual.draft, residual.draft_summary, drafted),
                probability_of(residual.target, residual.target_summary, drafted)))
      return drafted;
    rejected_ = true;
    return static_cast<int32_t>(recover(residual, p_.position[b_] + i));
  }

  // An empty residual (equal rows, and a token that neither can produce) leaves the target's own distribution.
  int64_t recover(const Residual& residual, int64_t position) {
    const double mass = residual_mass(residual, scratch_);
    if (mass > 0.0) return draw_residual(residual, mass, recover_uniform(p_.seed[b_], position), scratch_);
    const DrawKey key{Mode::kInverseCdf, p_.seed[b_], position, 0, kPurposeRecover};
    return draw_token(residual.target, residual.target_summary, key, scratch_);
  }

  const VerifyParams& p_;
  const int64_t b_;
  const Mode mode_;
  bool rejected_ = false;
  RowScratch& scratch_ = thread_scratch();
};

}  // namespace

void verify(const VerifyParams& params) {
  parallel_for(params.B, microseconds_to_read(params.B * (2 * params.G + 1) * params.V), [&](int64_t b) {
    const Outcome outcome = Chain(params, b).run();
    params.num_accepted[b] = outcome.num_accepted;
    params.next_token[b] = outcome.next_token;
    params.survivor[b] = outcome.survivor;
  });
}

}  // namespace specbranch::cpu
