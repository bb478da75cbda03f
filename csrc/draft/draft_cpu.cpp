// Several steps of a small decoder in one call: embed, decode, head, cutoff, draw, and again.
//
//   step s: logits[s, r] = head(decoder(tokens of step s))[r];  drawn[s, r] ~ softmax(logits[s, r]);  next tokens =
//   drawn[s]
//
// Several sequences share each step's forward while they go on; a sequence's bits are those it has alone.
//
// Layout: see DraftParams. Work: that of the ops it calls, bit for bit what they give one by one. Why: a step of a
// small
//         draft takes 20 microseconds, and so does what Python does around it; and a draft lane that holds no
//         interpreter lock leaves it to the target's. Bound: latency of one step after the other.
#include <cstring>
#include <vector>

#include "common/element.h"
#include "common/philox.h"
#include "ops.h"

namespace specbranch::cpu {
namespace {

// One sequence's tokens, draws and outputs.
class Drafting {
 public:
  Drafting(const DraftSequence& p, const ForwardParams& model)
      : p_(p), dtype_(model.decoder.dtype), vocab_(model.V), row_bytes_(model.V * element_size(dtype_)) {
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
    *p.num_steps = 0;
  }

  bool goes_on() const { return goes_on_ && step_ < p_.steps; }
  int64_t branches() const { return p_.branches; }
  const std::vector<int64_t>& tokens() const { return tokens_; }

  // Where the tokens of this step lie, and what they see.
  DecoderSequence place() {
    const int64_t k = p_.branches;
    const bool chain = k == 1;
    const int64_t first = chain && step_ > 0 ? p_.prefix + p_.inputs + step_ - 1 : p_.prefix + step_ * k;
    slots_.resize(tokens_.size());
    positions_.resize(tokens_.size());
    for (int64_t i = 0; i < count(); ++i) {
      slots_[i] = static_cast<int32_t>(first + i);
      positions_[i] = static_cast<int32_t>(chain ? first + i : p_.prefix + step_);
    }
    // A chain is a prefix that has grown.
    visible_prefix_ = static_cast<int32_t>(chain ? first : p_.prefix);
    const int64_t words = chain ? 0 : ((step_ + 1) * k + 31) / 32;
    bits_.assign(count() * words, 0u);
    for (int64_t r = 0; !chain && r < k; ++r)
      for (int64_t node = r; node <= step_ * k + r; node += k) bits_[r * words + node / 32] |= 1u << (node % 32);
    const uint32_t* bits = words > 0 ? bits_.data() : nullptr;
    return {count(), p_.S, words, p_.cache, positions_.data(), slots_.data(), &visible_prefix_, bits};
  }

  // Where the logits of this step are wanted, [branches, V].
  void* logits() const { return static_cast<char*>(p_.logits) + step_ * p_.R * row_bytes_; }
  int64_t logits_bytes() const { return p_.branches * row_bytes_; }

  // The logits are there: draw. What was drawn is the next step's, unless a row was bad or no branch is worth growing.
  void draw() {
    const int64_t k = p_.branches, at = step_ * p_.R;
    const Logits rows{logits(), dtype_, vocab_, 0};
    float* cutoff = p_.cut ? p_.cutoff + at : nullptr;
    if (p_.cut) {
      logit_cutoff({k, vocab_, rows, temperature_.data(), top_k_.data(), top_p_.data(), min_p_.data(), cutoff});
    }
    position_.assign(position_.size(), p_.position + step_);
    sample({k, vocab_, p_.draw, rows, temperature_.data(), cutoff, seed_.data(), position_.data(), lane_.data(),
            kPurposeDraft, p_.drawn + at, probability_.data(), p_.confidence + at, entropy_.data()});
    *p_.num_steps = ++step_;
    goes_on_ = read(p_.drawn + at, p_.confidence + at);
  }

 private:
  int64_t count() const { return static_cast<int64_t>(tokens_.size()); }

  bool read(const int32_t* drawn, const float* confidence) {
    bool any_alive = false;
    for (int64_t r = 0; r < p_.branches; ++r) {
      if (drawn[r] < 0) return false;
      alive_[r] = alive_[r] && confidence[r] >= p_.stop_below;
      any_alive |= alive_[r];
    }
    tokens_.assign(drawn, drawn + p_.branches);
    return any_alive;
  }

  const DraftSequence& p_;
  const DType dtype_;
  const int64_t vocab_, row_bytes_;
  int64_t step_ = 0;
  bool goes_on_ = true;
  std::vector<int64_t> tokens_, seed_, position_;
  std::vector<int32_t> slots_, positions_, lane_, top_k_;
  std::vector<uint32_t> bits_;
  std::vector<float> temperature_, top_p_, min_p_, probability_, entropy_;
  std::vector<bool> alive_;
  int32_t visible_prefix_ = 0;
};

// The forwards that the sequences share.
class Steps {
 public:
  explicit Steps(const DraftParams& p) : model_(p.model) {
    all_.reserve(p.B);
    for (int64_t b = 0; b < p.B; ++b) all_.emplace_back(p.sequences[b], p.model);
  }

  void run() {
    while (gather()) {
      forward_all();
      for (Drafting* one : going_) one->draw();
    }
  }

 private:
  // Those that go on.
  bool gather() {
    going_.clear();
    for (Drafting& one : all_) {
      if (one.goes_on()) going_.push_back(&one);
    }
    return !going_.empty();
  }

  void forward_all() {
    sequences_.clear(), head_rows_.clear(), tokens_.clear();
    for (Drafting* one : going_) {
      sequences_.push_back(one->place());
      head_rows_.push_back(one->branches());
      tokens_.insert(tokens_.end(), one->tokens().begin(), one->tokens().end());
    }
    DecoderParams& d = model_.decoder;
    d.B = static_cast<int64_t>(sequences_.size()), d.N = static_cast<int64_t>(tokens_.size());
    d.K = 0, d.hidden = nullptr, d.sequences = sequences_.data();
    model_.tokens = tokens_.data(), model_.head_rows = head_rows_.data();
    // One sequence's go where they belong at once, those of several come from one matrix product.
    model_.logits = d.B == 1 ? going_[0]->logits() : room();
    forward(model_);
    if (d.B > 1) hand_out();
  }

  void* room() {
    int64_t bytes = 0;
    for (const Drafting* one : going_) bytes += one->logits_bytes();
    if (static_cast<int64_t>(logits_.size()) < bytes) logits_.resize(bytes);
    return logits_.data();
  }

  void hand_out() const {
    const char* source = logits_.data();
    for (const Drafting* one : going_) {
      std::memcpy(one->logits(), source, one->logits_bytes());
      source += one->logits_bytes();
    }
  }

  ForwardParams model_;
  std::vector<Drafting> all_;
  std::vector<Drafting*> going_;
  std::vector<DecoderSequence> sequences_;
  std::vector<int64_t> head_rows_, tokens_;
  std::vector<char> logits_;
};

}  // namespace

void draft(const DraftParams& p) { Steps(p).run(); }

}  // namespace specbranch::cpu
