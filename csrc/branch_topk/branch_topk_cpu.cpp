// branch_topk on the CPU: the k best tokens of a row, best first, lowest index first among equals, where "best" is the
// logit, or for coupled draws (logit - max) / temperature + Gumbel noise; k = branch_count(k_max, confidence).
// Layout: logits [B, V], rows contiguous; candidates [B, K]. Work split: a batch row a thread, or, for one long row,
// the chunks of the softmax pass; the selection is serial and visits only chunks whose best logit can still enter.
// Bound: one exp per logit for the confidence. Reduction order: fixed in common/distribution.h.
#include <algorithm>
#include <vector>

#include "branch_topk/branch_topk.h"
#include "common/gumbel.h"
#include "common/parallel.h"
#include "common/row_cpu.h"

namespace specbranch::cpu {
namespace {

// The best `capacity` (score, token) pairs seen so far, in order. Tokens must come in ascending order.
class TopK {
 public:
  TopK(int32_t* tokens, int64_t capacity) : tokens_(tokens), capacity_(capacity) { scores().clear(); }

  int64_t size() const { return static_cast<int64_t>(scores().size()); }
  float entry_score() const { return size() < capacity_ ? -kInfinity : scores().back(); }

  void offer(float score, int64_t token) {
    if (!(score > entry_score())) return;
    std::vector<float>& s = scores();
    const auto at = std::upper_bound(s.begin(), s.end(), score, [](float a, float b) { return a > b; });
    const int64_t index = at - s.begin();
    if (size() == capacity_) s.pop_back();
    s.insert(s.begin() + index, score);
    std::copy_backward(tokens_ + index, tokens_ + size() - 1, tokens_ + size());
    tokens_[index] = static_cast<int32_t>(token);
  }

 private:
  static std::vector<float>& scores() {
    thread_local std::vector<float> buffer;
    return buffer;
  }
  int32_t* tokens_;
  int64_t capacity_;
};

bool any_above(const float* scores, float threshold) {
  uint32_t any = 0;
  for (int l = 0; l < kRowLanes; ++l) any |= scores[l] > threshold ? 1u : 0u;
  return any != 0;
}

void offer_chunk(const float* scores, int64_t first_token, TopK& top) {
  for (int i = 0; i < kChunk; i += kRowLanes) {
    if (!any_above(scores + i, top.entry_score())) continue;
    for (int l = 0; l < kRowLanes; ++l) top.offer(scores[i + l], first_token + i + l);
  }
}

void select_by_logit(const Row& row, const RowScratch& scratch, TopK& top) {
  float buffer[kChunk];
  for (int64_t c = 0; c < row.num_chunks(); ++c) {
    if (!(scratch.chunks[c].max > top.entry_score())) continue;
    const float* logits = load_chunk(row, c, buffer);
    if (row.cutoff > -kInfinity) {
      for (int i = 0; i < kChunk; ++i) buffer[i] = logits[i] >= row.cutoff ? logits[i] : -kInfinity;
      logits = buffer;
    }
    offer_chunk(logits, c * kChunk, top);
  }
}

void select_by_gumbel(const Row& row, const RowSummary& summary, const DrawKey& key, const RowScratch& scratch,
                      TopK& top) {
  float scores[kChunk];
  const float bound = kGumbelMax;
  for (int64_t c = 0; c < row.num_chunks(); ++c) {
    const float best = fused_multiply_add(scratch.chunks[c].max - summary.max, row.inv_temperature, bound);
    if (!(best > top.entry_score())) continue;
    gumbel_scores(row, summary, key, c, scores);
    offer_chunk(scores, c * kChunk, top);
  }
}

void branch_row(const BranchTopkParams& p, int64_t b) {
  RowScratch& scratch = thread_scratch();
  const Row row = make_row(p.logits, b, 0, p.V, p.temperature[b], p.cutoff ? p.cutoff + b : nullptr);
  int32_t* candidates = p.candidates + b * p.K;
  std::fill(candidates, candidates + p.K, -1);
  const RowSummary summary = read_sums(row, scratch);
  p.num_branches[b] = 0;
  p.confidence[b] = summary.valid ? summary.inv_sum : __builtin_nanf("");
  if (!summary.valid || p.K == 0) return;
  const Mode mode = mode_of(p.draw, p.temperature[b]);
  TopK top(candidates, branch_count(p.K, summary.inv_sum, p.K));
  if (mode == Mode::kGumbel)
    select_by_gumbel(row, summary, {mode, p.seed[b], p.position[b], 0, 0}, scratch, top);
  else
    select_by_logit(row, scratch, top);
  p.num_branches[b] = static_cast<int32_t>(top.size());
}

}  // namespace

void branch_topk(const BranchTopkParams& params) {
  parallel_for(params.B, microseconds_to_read(params.B * params.V), [&](int64_t b) { branch_row(params, b); });
}

}  // namespace specbranch::cpu
