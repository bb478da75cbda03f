// logit_cutoff on the CPU: the largest of three thresholds on a row of logits,
//   top-k:  the k-th largest logit (its equals are kept too)
//   top-p:  the largest logit t for which the tokens >= t hold top_p of the mass left by top-k
//   min-p:  max + temperature * log(min_p)
// so that "keep" is one comparison. -inf: nothing is cut; temperature 0: the maximum; bad row: NaN.
// Work: a guess (max - 8, - 24 temperatures) gathers the few candidates; if they do not suffice, all logits are taken.
// Thresholds are then found by bisection over the ordered bit patterns of the candidates, which drops what it leaves
// behind: no sort, and at most 32 steps whatever the input. Masses are fixed-point integers (2^-40 of the maximum's),
// so their sums have no order that could matter. Layout: logits [B, V], rows contiguous. Bound: reading the row twice
// (once for max and sum, once to gather).
#include <algorithm>
#include <cmath>
#include <vector>

#include "common/parallel.h"
#include "common/row_cpu.h"
#include "logit_cutoff/logit_cutoff.h"

namespace specbranch::cpu {
namespace {

// The logits worth looking at, as ordered keys with their fixed-point masses.
struct Candidates {
  std::vector<int32_t> keys;
  std::vector<int64_t> masses;
};

SB_TARGET_CLONES bool any_from(const float* logits, float floor) {
  uint32_t any = 0;
  for (int l = 0; l < kRowLanes; ++l) any |= logits[l] >= floor ? 1u : 0u;
  return any != 0;
}

void gather(const Row& row, const RowSummary& summary, const RowScratch& scratch, float floor, Candidates& out) {
  out.keys.clear();
  out.masses.clear();
  float buffer[kChunk], weights[kChunk];
  for (int64_t c = 0; c < row.num_chunks(); ++c) {
    if (scratch.chunks[c].max < floor) continue;
    const float* logits = load_chunk(row, c, buffer);
    scaled_weights(row, summary, c, weights);
    for (int i = 0; i < kChunk; ++i) {
      if (i % kRowLanes == 0 && !any_from(logits + i, floor)) {
        i += kRowLanes - 1;
        continue;
      }
      if (!(logits[i] >= floor) || logits[i] == -kInfinity) continue;
      out.keys.push_back(order_key(logits[i]));
      out.masses.push_back(mass_of(weights[i]));
    }
  }
}

// Sum of the weights of keys >= threshold.
SB_TARGET_CLONES int64_t weight_from(const int32_t* keys, const int64_t* weights, int64_t size, int32_t threshold) {
  int64_t sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += keys[i] >= threshold ? weights[i] : 0;
  return sum;
}

// Keeps the entries with low <= key <= high, in place; returns how many.
int64_t narrow(int32_t* keys, int64_t* weights, int64_t size, int32_t low, int32_t high) {
  int64_t kept = 0;
  for (int64_t i = 0; i < size; ++i) {
    const int32_t key = keys[i];
    const int64_t weight = weights[i];
    keys[kept] = key;
    weights[kept] = weight;
    kept += (key >= low) & (key <= high);
  }
  return kept;
}

// The largest threshold from which on the weights sum up to `wanted` or more; all of them must. Takes copies: entries
// are dropped as the bisection leaves them behind, so the work is about four passes over the entries.
int32_t select_threshold(std::vector<int32_t>& keys, std::vector<int64_t>& weights, double wanted) {
  const auto range = std::minmax_element(keys.begin(), keys.end());
  int32_t low = *range.first, high = *range.second;
  int64_t size = static_cast<int64_t>(keys.size()), above = 0;  // weight of the keys > high
  while (low < high) {
    const int32_t middle = static_cast<int32_t>((static_cast<int64_t>(low) + high + 1) >> 1);
    const int64_t sum = above + weight_from(keys.data(), weights.data(), size, middle);
    if (static_cast<double>(sum) >= wanted) {
      low = middle;
    } else {
      high = middle - 1;
      above = sum;
    }
    size = narrow(keys.data(), weights.data(), size, low, high);
  }
  return low;
}

struct Limits {
  int64_t top_k;  // 0: off
  double top_p;   // 1: off
};

// Threshold of top-k and top-p within the candidates, or false if more candidates are needed. `total`: mass of the row.
bool threshold_within(const Candidates& candidates, Limits limits, double total, bool complete, float* threshold) {
  thread_local std::vector<int32_t> keys;
  thread_local std::vector<int64_t> weights;
  const int64_t size = static_cast<int64_t>(candidates.keys.size());
  int32_t low = *std::min_element(candidates.keys.begin(), candidates.keys.end());
  if (limits.top_k > 0) {
    if (size < limits.top_k && !complete) return false;
    if (size > limits.top_k) {
      keys = candidates.keys;
      weights.assign(size, 1);
      low = select_threshold(keys, weights, static_cast<double>(limits.top_k));
    }
    total = static_cast<double>(weight_from(candidates.keys.data(), candidates.masses.data(), size, low)) / kMassUnit;
  }
  if (limits.top_p < 1.0) {
    const double wanted = limits.top_p * total * kMassUnit;
    keys = candidates.keys;
    weights = candidates.masses;
    const int64_t mass = weight_from(keys.data(), weights.data(), size, low);
    if (static_cast<double>(mass) >= wanted)
      low = std::max(low, select_threshold(keys, weights, wanted));
    else if (!complete)
      return false;
  }
  *threshold = key_value(low);
  return true;
}

float top_threshold(const Row& row, const RowSummary& summary, const RowScratch& scratch, Limits limits) {
  thread_local Candidates candidates;
  float threshold = -kInfinity;
  for (const float spread : {8.0f, 24.0f, kInfinity}) {
    gather(row, summary, scratch, summary.max - spread / row.inv_temperature, candidates);
    if (threshold_within(candidates, limits, summary.sum, spread == kInfinity, &threshold)) break;
  }
  return threshold;
}

float cutoff_of_row(const LogitCutoffParams& p, int64_t b) {
  RowScratch& scratch = thread_scratch();
  const float temperature = p.temperature[b];
  const Row row = make_row(p.logits, b, 0, p.V, temperature, nullptr);
  const bool use_top_k = p.top_k[b] > 0 && p.top_k[b] < p.V, use_top_p = p.top_p[b] < 1.0f;
  const bool needs_sum = use_top_p && !use_top_k && temperature > 0.0f;
  const RowSummary summary = needs_sum ? read_sums(row, scratch) : read_max(row, scratch);
  if (!summary.valid) return __builtin_nanf("");
  if (temperature == 0.0f) return summary.max;
  float cutoff = -kInfinity;
  if (use_top_k || use_top_p)
    cutoff = top_threshold(row, summary, scratch, {use_top_k ? p.top_k[b] : 0, static_cast<double>(p.top_p[b])});
  if (p.min_p[b] > 0.0f)
    cutoff = std::max(cutoff, fused_multiply_add(log_positive(std::max(p.min_p[b], 1e-37f)), temperature, summary.max));
  return std::min(cutoff, summary.max);
}

}  // namespace

void logit_cutoff(const LogitCutoffParams& params) {
  parallel_for(params.B, 2 * microseconds_to_read(params.B * params.V),
               [&](int64_t b) { params.cutoff[b] = given_cutoff(cutoff_of_row(params, b)); });
}

}  // namespace specbranch::cpu
