// logit_cutoff on the CPU: the largest of three thresholds on a row of logits,
//   top-k:  the k-th largest logit (its equals are kept too)
//   top-p:  the largest logit t for which the tokens >= t hold top_p of the mass left by top-k
//   min-p:  max + temperature * log(min_p)
// so that "keep" is one comparison. -inf: nothing is cut; temperature 0: the maximum; bad row: NaN.
// Work: a guess (max - 8, - 24 temperatures) gathers the few candidates; if they do not suffice, all logits are taken.
// Thresholds are then found by bisection over the ordered bit patterns of the candidates: at most 32 vector passes and no
// sort, whatever the input. Masses are 2^-40 fixed point integers, so their sums have no order that could matter.
// Layout: logits [B, V], rows contiguous. Bound: reading the row twice (once for max and sum, once to gather).
#include <algorithm>
#include <cmath>
#include <vector>

#include "common/row_cpu.h"

namespace specbranch::cpu {
namespace {

constexpr double kMassUnit = 1099511627776.0;  // 2^40

// Order-preserving map of floats to integers; -0 and +0 are one.
SB_HD int32_t order_key(float value) {
  const int32_t bits = static_cast<int32_t>(float_bits(value + 0.0f));
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

SB_HD float key_value(int32_t key) {
  return bits_float(static_cast<uint32_t>(key ^ ((key >> 31) & 0x7FFFFFFF)));
}

// The logits worth looking at, as ordered keys with their fixed-point weights.
struct Candidates {
  std::vector<int32_t> keys;
  std::vector<int64_t> masses;
};

void gather(const Row& row, const RowSummary& summary, const RowScratch& scratch, float floor, Candidates& out) {
  out.keys.clear();
  out.masses.clear();
  float buffer[kChunk];
  for (int64_t c = 0; c < row.num_chunks(); ++c) {
    if (scratch.chunks[c].max < floor) continue;
    const float* logits = load_chunk(row, c, buffer);
    for (int i = 0; i < kChunk; ++i) {
      if (!(logits[i] >= floor) || logits[i] == -kInfinity) continue;
      const float weight = exp_nonpositive((logits[i] - summary.max) * row.inv_temperature);
      out.keys.push_back(order_key(logits[i]));
      out.masses.push_back(static_cast<int64_t>(static_cast<double>(weight) * kMassUnit));
    }
  }
}

SB_TARGET_CLONES int64_t count_from(const int32_t* keys, int64_t size, int32_t threshold) {
  int64_t count = 0;
  for (int64_t i = 0; i < size; ++i) count += keys[i] >= threshold ? 1 : 0;
  return count;
}

SB_TARGET_CLONES int64_t mass_from(const int32_t* keys, const int64_t* masses, int64_t size, int32_t threshold) {
  int64_t mass = 0;
  for (int64_t i = 0; i < size; ++i) mass += keys[i] >= threshold ? masses[i] : 0;
  return mass;
}

// The largest key for which `enough` holds; it holds for `low` and for everything below what it holds for.
template <class Enough>
int32_t largest_key(int32_t low, int32_t high, Enough enough) {
  while (low < high) {
    const int64_t sum = static_cast<int64_t>(low) + high + 1;
    const int32_t middle = static_cast<int32_t>(sum >> 1);
    if (enough(middle))
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

struct Limits {
  int64_t top_k;  // 0: off
  double top_p;   // 1: off
};

// Thresholds of top-k and top-p within the candidates, or false if more candidates are needed. `total`: mass of the row.
bool threshold_within(const Candidates& candidates, Limits limits, double total, bool complete, float* threshold) {
  const int64_t size = static_cast<int64_t>(candidates.keys.size());
  const int32_t* keys = candidates.keys.data();
  const int64_t* masses = candidates.masses.data();
  const auto range = std::minmax_element(candidates.keys.begin(), candidates.keys.end());
  int32_t low = *range.first;
  if (limits.top_k > 0) {
    if (size < limits.top_k && !complete) return false;
    if (size > limits.top_k)
      low = largest_key(low, *range.second, [&](int32_t t) { return count_from(keys, size, t) >= limits.top_k; });
    total = static_cast<double>(mass_from(keys, masses, size, low)) / kMassUnit;
  }
  if (limits.top_p < 1.0) {
    const double wanted = limits.top_p * total * kMassUnit;
    const auto enough = [&](int32_t t) { return static_cast<double>(mass_from(keys, masses, size, t)) >= wanted; };
    if (enough(low))
      low = largest_key(low, *range.second, enough);
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
#pragma omp parallel for schedule(dynamic) if (params.B > 1 && params.B * params.V >= kParallelSize)
  for (int64_t b = 0; b < params.B; ++b) params.cutoff[b] = cutoff_of_row(params, b);
}

}  // namespace specbranch::cpu
