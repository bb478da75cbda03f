// sample on the CPU: one token a row by inverse CDF (one uniform, tokens in index order) or by Gumbel-max, or argmax at
// temperature 0, with the probability of the token, the largest one and the entropy log(S) - sum(w * y) / S of
//   w = exp(y), y = (logit - max) / temperature, S = sum(w)     (temperature 1, nothing cut, where temperature is 0).
// Layout: logits [B, V], rows contiguous. Work split: a batch row a thread, or, for one long row, its chunks.
// Bound: one exp per logit; Gumbel adds a quarter of a Philox block and two logs to chunks that can still win.
// Reduction order: fixed in common/distribution.h.
#include "common/parallel.h"
#include "common/row_cpu.h"

namespace specbranch::cpu {
namespace {

void sample_row(const SampleParams& p, int64_t b) {
  RowScratch& scratch = thread_scratch();
  const float temperature = p.temperature[b];
  const Row row = make_row(p.logits, b, 0, p.V, temperature, p.cutoff ? p.cutoff + b : nullptr);
  const RowSummary summary = read_sums(row, scratch, true);
  if (!summary.valid) {
    p.token[b] = -1;
    p.probability[b] = p.max_probability[b] = p.entropy[b] = __builtin_nanf("");
    return;
  }
  const uint32_t lane = p.lane ? static_cast<uint32_t>(p.lane[b]) : 0;
  const int64_t token =
      draw_token(row, summary, {mode_of(p.draw, temperature), p.seed[b], p.position[b], lane, p.purpose}, scratch);
  p.token[b] = static_cast<int32_t>(token);
  p.probability[b] = probability_of(row, summary, token);
  p.max_probability[b] = summary.inv_sum;
  const float entropy =
      log_positive(static_cast<float>(summary.sum)) - static_cast<float>(summary.weighted / summary.sum);
  p.entropy[b] = entropy > 0.0f ? entropy : 0.0f;
}

}  // namespace

void sample(const SampleParams& params) {
  parallel_for(params.B, microseconds_to_read(params.B * params.V), [&](int64_t b) { sample_row(params, b); });
}

}  // namespace specbranch::cpu
