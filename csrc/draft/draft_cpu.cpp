// Several steps of a small decoder in one call: embed, decode, head, cutoff, draw, and again.
//
//   step s: logits[s, r] = head(decoder(tokens of step s))[r];  drawn[s, r] ~ softmax(logits[s, r]);  next tokens =
//   drawn[s]
//
// Layout: see DraftParams. Work: that of the ops it calls, bit for bit what they give one by one. Why: a step of a
// small
//         draft takes 20 microseconds, and so does what Python does around it; and a draft lane that holds no
//         interpreter lock leaves it to the target's. Bound: latency of one step after the other.
#include <vector>

#include "common/element.h"
#include "common/philox.h"
#include "ops.h"

namespace specbranch::cpu {
namespace {

class Drafting {
 public:
  explicit Drafting(const DraftParams& p) : p_(p), bytes_(element_size(p.model.decoder.dtype)) {
    const auto rows = static_cast<size_t>(p.branches);
    temperature_.assign(rows, p.temperature);
    top_k_.assign(rows, p.top_k);
    top_p_.assign(rows, p.top_p);
    min_p_.assign(rows, p.min_p);
    seed_.assign(rows, p.seed);
    position_.resize(rows);
    probability_.resize(rows);
    entropy_.resize(rows);
    alive_.assign(rows, true);
    for (size_t r = 0; r < rows; ++r) lane_.push_back(static_cast<int32_t>(r));
    tokens_.assign(p.tokens, p.tokens + p.inputs);
  }

  void run() {
    *p_.num_steps = 0;
    for (int64_t step = 0; step < p_.steps; ++step) {
      run_model(step);
      draw(step);
      *p_.num_steps = step + 1;
      if (!goes_on(step)) return;
    }
  }

 private:
  int64_t count() const { return static_cast<int64_t>(tokens_.size()); }

  // Where the tokens of a step lie, and what they see.
  void place(int64_t step) {
    const int64_t k = p_.branches;
    const bool chain = k == 1;
    const int64_t first = chain && step > 0 ? p_.prefix + p_.inputs + step - 1 : p_.prefix + step * k;
    slots_.resize(tokens_.size());
    positions_.resize(tokens_.size());
    for (int64_t i = 0; i < count(); ++i) {
      slots_[i] = static_cast<int32_t>(first + i);
      positions_[i] = static_cast<int32_t>(chain ? first + i : p_.prefix + step);
    }
    // A chain is a prefix that has grown.
    visible_prefix_ = static_cast<int32_t>(chain ? first : p_.prefix);
    words_ = chain ? 0 : ((step + 1) * k + 31) / 32;
    bits_.assign(count() * words_, 0u);
    for (int64_t r = 0; !chain && r < k; ++r)
      for (int64_t node = r; node <= step * k + r; node += k) bits_[r * words_ + node / 32] |= 1u << (node % 32);
  }

  void run_model(int64_t step) {
    place(step);
    ForwardParams model = p_.model;
    DecoderParams& d = model.decoder;
    d.N = count(), d.W = words_, d.K = 0, d.hidden = nullptr;
    d.positions = positions_.data(), d.slots = slots_.data(), d.prefix_length = &visible_prefix_;
    d.ancestor_bits = words_ > 0 ? bits_.data() : nullptr;
    model.head_rows = p_.branches, model.tokens = tokens_.data(), model.logits = logits(step);
    forward(model);
  }

  void* logits(int64_t step) const { return static_cast<char*>(p_.logits) + step * p_.R * p_.model.V * bytes_; }

  void draw(int64_t step) {
    const int64_t k = p_.branches;
    const Logits rows{logits(step), p_.model.decoder.dtype, p_.model.V, 0};
    float* cutoff = p_.cut ? p_.cutoff + step * p_.R : nullptr;
    if (p_.cut) {
      logit_cutoff({k, p_.model.V, rows, temperature_.data(), top_k_.data(), top_p_.data(), min_p_.data(), cutoff});
    }
    position_.assign(position_.size(), p_.position + step);
    sample({k, p_.model.V, p_.draw, rows, temperature_.data(), cutoff, seed_.data(), position_.data(), lane_.data(),
            kPurposeDraft, p_.drawn + step * p_.R, probability_.data(), p_.confidence + step * p_.R, entropy_.data()});
  }

  // The drawn tokens are the next step's, unless a row was bad or no branch is worth growing.
  bool goes_on(int64_t step) {
    const int32_t* drawn = p_.drawn + step * p_.R;
    bool any_alive = false;
    for (int64_t r = 0; r < p_.branches; ++r) {
      if (drawn[r] < 0) return false;
      alive_[r] = alive_[r] && p_.confidence[step * p_.R + r] >= p_.stop_below;
      any_alive |= alive_[r];
    }
    tokens_.assign(drawn, drawn + p_.branches);
    return any_alive;
  }

  const DraftParams& p_;
  const int64_t bytes_;
  std::vector<int64_t> tokens_, seed_, position_;
  std::vector<int32_t> slots_, positions_, lane_, top_k_;
  std::vector<uint32_t> bits_;
  std::vector<float> temperature_, top_p_, min_p_, probability_, entropy_;
  std::vector<bool> alive_;
  int32_t visible_prefix_ = 0;
  int64_t words_ = 0;
};

}  // namespace

void draft(const DraftParams& p) { Drafting(p).run(); }

}  // namespace specbranch::cpu
