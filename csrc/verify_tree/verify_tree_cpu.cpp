// verify_tree on the CPU: a walk from the root, one level at a time. At a node:
//   deterministic children, temperature 0 or coupled: one draw of the target, matched against the children (lowest
//   first) sampled children: multi-round rejection. f_0 = target; child r is accepted by u_r * draft(x_r) < f_r(x_r),
//   else
//     f_{r+1} = norm(max(0, f_r - draft)); after the last rejection the next token is drawn from f.
// A chain is a tree with one child a node: the uniforms, rows and arithmetic are then those of verify, bit for bit.
// Layout: target_logits and draft_logits [B, N+1, V], row 0 the root, row i+1 node i. Only rows on the path are read.
// Work split, bounds and reduction order: as verify_cpu.cpp; every rejection reads its two rows once more.
#include <algorithm>
#include <vector>

#include "common/parallel.h"
#include "common/row_cpu.h"
#include "verify/verify.h"

namespace specbranch::cpu {
namespace {

constexpr int32_t kBad = -1;

// What happened at one node: a child taken (>= 0), or none and the token to end with (kBad: bad row).
struct Step {
  int32_t child, token;
};

class Walk {
 public:
  Walk(const VerifyTreeParams& params, int64_t b)
      : p_(params), b_(b), tokens_(params.tokens + b * params.N), mode_(mode_of(params.draw, params.temperature[b])) {}

  void run() {
    int32_t* path = p_.path + b_ * p_.N;
    std::fill(path, path + p_.N, -1);
    int32_t node = -1, length = 0;
    Step step = visit(node, length);
    for (; step.child >= 0; step = visit(node, length)) path[length++] = node = step.child;
    if (step.token == kBad) std::fill(path, path + p_.N, -1);
    p_.num_accepted[b_] = step.token == kBad ? -1 : length;
    p_.next_token[b_] = step.token;
  }

 private:
  Step visit(int32_t node, int32_t depth) {
    const int32_t first = next_child(node, node + 1);
    const bool sampled = first >= 0 && p_.sampled != nullptr && p_.sampled[b_ * p_.N + first] != 0;
    if (sampled && mode_ == Mode::kInverseCdf) return visit_sampled(node, first, p_.position[b_] + depth);
    const DrawKey key{mode_, p_.seed[b_], p_.position[b_] + depth, 0, kPurposeRecover};
    const int32_t token =
        static_cast<int32_t>(read_and_draw(row(p_.target_logits, p_.target_cutoff, node), key, scratch_));
    if (token < 0) return {-1, kBad};
    int32_t child = first;
    while (child >= 0 && tokens_[child] != token) child = next_child(node, child + 1);
    return {child, token};
  }

  Step visit_sampled(int32_t node, int32_t first, int64_t position) {
    Residual residual{
        row(p_.target_logits, p_.target_cutoff, node), row(p_.draft_logits, p_.draft_cutoff, node), {}, {}, nullptr, 0};
    residual.draft_summary = read_sums(residual.draft, scratch_);
    residual.target_summary = read_sums(residual.target, scratch_);
    if (!residual.draft_summary.valid || !residual.target_summary.valid) return {-1, kBad};
    scales_.clear();
    uint32_t sibling = 0;
    for (int32_t child = first; child >= 0; child = next_child(node, child + 1), ++sibling) {
      const double u = accept_uniform(p_.seed[b_], position, sibling);
      const float draft = probability_of(residual.draft, residual.draft_summary, tokens_[child]);
      if (accepts(u, draft, current_probability(residual, draft, tokens_[child]))) return {child, tokens_[child]};
      push_rejection(residual);
    }
    return {-1, static_cast<int32_t>(recover(residual, position))};
  }

  // f_r of a token, r = number of rejections so far.
  float current_probability(const Residual& residual, float draft, int32_t token) const {
    float value = probability_of(residual.target, residual.target_summary, token);
    for (const float scale : scales_) value = residual_weight(value, draft, scale);
    return value;
  }

  // An empty residual (the two are equal up to rounding) leaves f as it was.
  void push_rejection(Residual& residual) {
    residual.scales = scales_.data();
    residual.num_scales = static_cast<int>(scales_.size());
    const double mass = residual_mass(residual, scratch_);
    if (mass <= 0.0) return;
    scales_.push_back(static_cast<float>(1.0 / mass));
  }

  int64_t recover(Residual& residual, int64_t position) {
    if (scales_.empty()) {
      const DrawKey key{Mode::kInverseCdf, p_.seed[b_], position, 0, kPurposeRecover};
      return draw_token(residual.target, residual.target_summary, key, scratch_);
    }
    residual.scales = scales_.data();
    residual.num_scales = static_cast<int>(scales_.size()) - 1;
    const double mass = residual_mass(residual, scratch_);
    return draw_residual(residual, mass, recover_uniform(p_.seed[b_], position), scratch_);
  }

  int32_t next_child(int32_t node, int32_t from) const {
    for (int32_t i = from; i < p_.num_nodes[b_]; ++i)
      if (p_.parents[b_ * p_.N + i] == node) return i;
    return -1;
  }

  Row row(const Logits& logits, const float* cutoff, int32_t node) const {
    const float* own = cutoff ? cutoff + b_ * (p_.N + 1) + node + 1 : nullptr;
    return make_row(logits, b_, node + 1, p_.V, p_.temperature[b_], own);
  }

  const VerifyTreeParams& p_;
  const int64_t b_;
  const int32_t* tokens_;
  const Mode mode_;
  RowScratch& scratch_ = thread_scratch();
  std::vector<float> scales_;
};

}  // namespace

void verify_tree(const VerifyTreeParams& params) {
  parallel_for(params.B, microseconds_to_read(params.B * (params.N + 1) * params.V),
               [&](int64_t b) { Walk(params, b).run(); });
}

}  // namespace specbranch::cpu
