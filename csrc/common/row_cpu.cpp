// Chunk loops of the CPU ops. The leaf functions (SB_TARGET_CLONES) have fixed trip counts of 1024 and 32, no branches
// and no calls, so that the compiler turns each into straight vector code for AVX-512, AVX2 and the baseline alike.
// Bound: about one exp a cycle and core (AVX-512), i.e. arithmetic, not memory, while rows stay in the L2 cache.
#include "common/row_cpu.h"

#include <algorithm>

#include "common/element.h"
#include "common/gumbel.h"
#include "common/parallel.h"

namespace specbranch::cpu {
namespace {

SB_TARGET_CLONES void widen(const BFloat16* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

SB_TARGET_CLONES void widen(const Float16* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

SB_HD float butterfly_sum(float* lanes) {
  for (int width = kRowLanes / 2; width > 0; width /= 2)
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  return lanes[0];
}

SB_HD float butterfly_max(float* lanes) {
  for (int width = kRowLanes / 2; width > 0; width /= 2)
    for (int l = 0; l < width; ++l) lanes[l] = lanes[l] > lanes[l + width] ? lanes[l] : lanes[l + width];
  return lanes[0];
}

SB_TARGET_CLONES void chunk_max(const float* logits, float cutoff, ChunkStats* stats) {
  float lanes[kRowLanes];
  uint32_t bad[kRowLanes];
  for (int l = 0; l < kRowLanes; ++l) lanes[l] = -kInfinity, bad[l] = 0;
  for (int i = 0; i < kChunk; i += kRowLanes)
    for (int l = 0; l < kRowLanes; ++l) {
      const float raw = logits[i + l];
      bad[l] |= raw < kInfinity ? 0u : 1u;  // true for NaN too
      const float kept = raw >= cutoff ? raw : -kInfinity;
      lanes[l] = kept > lanes[l] ? kept : lanes[l];
    }
  uint32_t any_bad = 0;
  for (int l = 0; l < kRowLanes; ++l) any_bad |= bad[l];
  stats->bad = any_bad != 0;
  stats->max = butterfly_max(lanes);
}

// exp((logit - reference) / temperature) of one chunk, 0 for what is cut. `reference` is finite.
SB_TARGET_CLONES void chunk_weights(const float* logits, float cutoff, float reference, float inv_temperature,
                                    float* weights) {
  for (int i = 0; i < kChunk; ++i) {
    const float y = (logits[i] - reference) * inv_temperature;
    const float weight = exp_nonpositive(y < 0.0f ? y : 0.0f);
    weights[i] = logits[i] >= cutoff ? weight : 0.0f;
  }
}

SB_TARGET_CLONES float lane_sum(const float* weights) {
  float lanes[kRowLanes];
  for (int l = 0; l < kRowLanes; ++l) lanes[l] = 0.0f;
  for (int i = 0; i < kChunk; i += kRowLanes)
    for (int l = 0; l < kRowLanes; ++l) lanes[l] += weights[i + l];
  return butterfly_sum(lanes);
}

// Sum of weight * y, y = (logit - reference) / temperature.
SB_TARGET_CLONES float lane_sum_weighted(const float* weights, const float* logits, float reference,
                                         float inv_temperature) {
  float lanes[kRowLanes];
  for (int l = 0; l < kRowLanes; ++l) lanes[l] = 0.0f;
  for (int i = 0; i < kChunk; i += kRowLanes)
    for (int l = 0; l < kRowLanes; ++l) {
      const float y = (logits[i + l] - reference) * inv_temperature;
      lanes[l] = fused_multiply_add(weights[i + l], y > kExpFloor ? y : kExpFloor, lanes[l]);
    }
  return butterfly_sum(lanes);
}

SB_TARGET_CLONES void scale_chunk(float* values, float scale) {
  for (int i = 0; i < kChunk; ++i) values[i] *= scale;
}

SB_TARGET_CLONES void subtract_clipped(float* values, const float* other, float scale) {
  for (int i = 0; i < kChunk; ++i) values[i] = residual_weight(values[i], other[i], scale);
}

SB_TARGET_CLONES void add_gumbel(const float* logits, float cutoff, float reference, float inv_temperature,
                                 int64_t seed, int64_t position, uint32_t first_counter, float* scores) {
  uint32_t words[kChunk];
  for (int i = 0; i < kChunk / 4; ++i) {
    const PhiloxBlock block = philox_at(seed, position, first_counter + static_cast<uint32_t>(i), kPurposeGumbel);
    for (int w = 0; w < 4; ++w) words[w * (kChunk / 4) + i] = block.word[w];
  }
  for (int i = 0; i < kChunk; ++i) {
    const float score = fused_multiply_add(logits[i] - reference, inv_temperature, gumbel_from_word(words[i]));
    scores[i] = logits[i] >= cutoff ? score : -kInfinity;
  }
}

SB_TARGET_CLONES float max_of(const float* values) {
  float lanes[kRowLanes];
  for (int l = 0; l < kRowLanes; ++l) lanes[l] = values[l];
  for (int i = kRowLanes; i < kChunk; i += kRowLanes)
    for (int l = 0; l < kRowLanes; ++l) lanes[l] = values[i + l] > lanes[l] ? values[i + l] : lanes[l];
  return butterfly_max(lanes);
}

int first_equal(const float* values, float wanted) {
  int i = 0;
  while (i < kChunk - 1 && values[i] != wanted) ++i;
  return i;
}

// First index whose running sum (groups of 32 tokens by butterfly, then token by token, float64) exceeds `target`;
// if rounding leaves none, the last one with a positive weight. An index of weight 0 is never returned.
int pick_in_chunk(const float* weights, double scale, double target) {
  double before = 0.0, before_last = 0.0;
  int group = -1;
  for (int g = 0; g < kGroups; ++g) {
    float lanes[kRowLanes];
    std::copy(weights + g * kRowLanes, weights + (g + 1) * kRowLanes, lanes);
    const double mass = rounded_multiply(scale, static_cast<double>(butterfly_sum(lanes)));
    if (mass <= 0.0) continue;
    group = g;
    before_last = before;
    before += mass;
    if (before > target) break;
  }
  int picked = -1;
  double running = before_last;
  for (int i = group * kRowLanes; i < (group + 1) * kRowLanes; ++i) {
    if (weights[i] <= 0.0f) continue;
    picked = i;
    running += scale * static_cast<double>(weights[i]);
    if (running > target) break;
  }
  return picked;
}

// The same over chunk masses; *before: the mass of the chunks in front of the one returned.
template <class MassOf>
int64_t pick_chunk(int64_t num_chunks, double target, MassOf mass_of, double* before) {
  double running = 0.0;
  int64_t picked = -1;
  for (int64_t c = 0; c < num_chunks; ++c) {
    const double mass = mass_of(c);
    if (mass <= 0.0) continue;
    picked = c;
    *before = running;
    running += mass;
    if (running > target) break;
  }
  return picked;
}

void residual_weights(const Residual& r, int64_t chunk, float* weights) {
  float buffer[kChunk], draft[kChunk];
  const float* logits = load_chunk(r.target, chunk, buffer);
  chunk_weights(logits, r.target.cutoff, r.target_summary.max, r.target.inv_temperature, weights);
  scale_chunk(weights, r.target_summary.inv_sum);
  logits = load_chunk(r.draft, chunk, buffer);
  chunk_weights(logits, r.draft.cutoff, r.draft_summary.max, r.draft.inv_temperature, draft);
  scale_chunk(draft, r.draft_summary.inv_sum);
  for (int k = 0; k < r.num_scales; ++k) subtract_clipped(weights, draft, r.scales[k]);
  subtract_clipped(weights, draft, 1.0f);
}

RowSummary max_of_chunks(const Row& row, RowScratch& scratch) {
  RowSummary summary{-kInfinity, 0.0f, 0.0, 0.0, true};
  for (int64_t c = 0; c < row.num_chunks(); ++c) {
    summary.valid &= !scratch.chunks[c].bad;
    summary.max = std::max(summary.max, scratch.chunks[c].max);
  }
  summary.valid &= summary.max > -kInfinity;
  return summary;
}

int64_t argmax(const Row& row, const RowSummary& summary, const RowScratch& scratch) {
  int64_t c = 0;
  while (scratch.chunks[c].max != summary.max) ++c;
  float buffer[kChunk];
  return c * kChunk + first_equal(load_chunk(row, c, buffer), summary.max);
}

int64_t argmax_gumbel(const Row& row, const RowSummary& summary, const DrawKey& key, RowScratch& scratch) {
  struct Best {
    float score;
    int64_t token;
  };
  const int64_t num_chunks = row.num_chunks();
  thread_local std::vector<Best> storage;
  storage.assign(num_chunks, Best{-kInfinity, -1});
  std::vector<Best>& best = storage;  // the caller's, also inside the team of threads
  parallel_for(num_chunks, static_cast<double>(row.size) / 600.0, [&](int64_t c) {
    if (gumbel_hopeless(row, summary, scratch.chunks[c])) return;
    float scores[kChunk];
    gumbel_scores(row, summary, key, c, scores);
    const float score = max_of(scores);
    best[c] = Best{score, c * kChunk + first_equal(scores, score)};
  });
  Best winner{-kInfinity, -1};
  for (const Best& candidate : best)
    if (candidate.score > winner.score) winner = candidate;
  return winner.token;
}

int64_t draw_inverse_cdf(const Row& row, const RowSummary& summary, double u, RowScratch& scratch) {
  const double target = u * summary.sum;
  double before = 0.0;
  const auto mass_of = [&](int64_t c) { return scratch.chunks[c].mass; };
  const int64_t c = pick_chunk(row.num_chunks(), target, mass_of, &before);
  const ChunkStats& stats = scratch.chunks[c];
  float buffer[kChunk], weights[kChunk];
  chunk_weights(load_chunk(row, c, buffer), row.cutoff, stats.max, row.inv_temperature, weights);
  const double scale = exp_nonpositive((stats.max - summary.max) * row.inv_temperature);
  return c * kChunk + pick_in_chunk(weights, scale, target - before);
}

}  // namespace

Row make_row(const Logits& logits, int64_t b, int64_t i, int64_t size, float temperature, const float* cutoff) {
  const int64_t offset = b * logits.stride0 + i * logits.stride1;
  const bool keep_all = cutoff == nullptr || temperature == 0.0f;
  return Row{static_cast<const char*>(logits.data) + offset * element_size(logits.dtype), logits.dtype, size,
             inverse_temperature(temperature), keep_all ? -kInfinity : *cutoff};
}

Mode mode_of(Draw draw, float temperature) {
  if (temperature == 0.0f) return Mode::kGreedy;
  return draw == Draw::kGumbel ? Mode::kGumbel : Mode::kInverseCdf;
}

RowScratch& thread_scratch() {
  thread_local RowScratch scratch;
  return scratch;
}

const float* load_chunk(const Row& row, int64_t chunk, float* buffer) {
  const int64_t start = chunk * kChunk;
  const int64_t count = std::min<int64_t>(kChunk, row.size - start);
  if (row.dtype == DType::kFloat32) {
    const float* data = static_cast<const float*>(row.data) + start;
    if (count == kChunk) return data;
    std::copy(data, data + count, buffer);
  } else {
    if (row.dtype == DType::kBFloat16)
      widen(static_cast<const BFloat16*>(row.data) + start, count, buffer);
    else
      widen(static_cast<const Float16*>(row.data) + start, count, buffer);
  }
  std::fill(buffer + count, buffer + kChunk, -kInfinity);
  return buffer;
}

RowSummary read_max(const Row& row, RowScratch& scratch) {
  const int64_t num_chunks = row.num_chunks();
  if (static_cast<int64_t>(scratch.chunks.size()) < num_chunks) scratch.chunks.resize(num_chunks);
  parallel_for(num_chunks, static_cast<double>(row.size) / 10000.0, [&](int64_t c) {
    float buffer[kChunk];
    chunk_max(load_chunk(row, c, buffer), row.cutoff, &scratch.chunks[c]);
  });
  return max_of_chunks(row, scratch);
}

RowSummary read_sums(const Row& row, RowScratch& scratch, bool with_entropy) {
  const int64_t num_chunks = row.num_chunks();
  if (static_cast<int64_t>(scratch.chunks.size()) < num_chunks) scratch.chunks.resize(num_chunks);
  parallel_for(num_chunks, microseconds_to_read(row.size), [&](int64_t c) {
    float buffer[kChunk], weights[kChunk];
    const float* logits = load_chunk(row, c, buffer);
    ChunkStats& stats = scratch.chunks[c];
    chunk_max(logits, row.cutoff, &stats);
    stats.sum = stats.weighted = 0.0f;
    if (stats.bad || stats.max == -kInfinity) return;
    chunk_weights(logits, row.cutoff, stats.max, row.inv_temperature, weights);
    stats.sum = lane_sum(weights);
    if (with_entropy) stats.weighted = lane_sum_weighted(weights, logits, stats.max, row.inv_temperature);
  });
  RowSummary summary = max_of_chunks(row, scratch);
  if (!summary.valid) return summary;
  for (int64_t c = 0; c < num_chunks; ++c) {
    ChunkStats& stats = scratch.chunks[c];
    const float shift = (stats.max - summary.max) * row.inv_temperature;
    const double scale = exp_nonpositive(shift);
    stats.mass = scale * static_cast<double>(stats.sum);
    summary.sum += stats.mass;
    if (scale > 0.0) {
      const double shifted = static_cast<double>(shift) * static_cast<double>(stats.sum);
      summary.weighted += scale * (static_cast<double>(stats.weighted) + shifted);
    }
  }
  summary.inv_sum = static_cast<float>(1.0 / summary.sum);
  return summary;
}

float logit_at(const Row& row, int64_t token) {
  if (row.dtype == DType::kFloat32) return static_cast<const float*>(row.data)[token];
  if (row.dtype == DType::kBFloat16) return to_float(static_cast<const BFloat16*>(row.data)[token]);
  return to_float(static_cast<const Float16*>(row.data)[token]);
}

float probability_of(const Row& row, const RowSummary& summary, int64_t token) {
  return probability(logit_at(row, token), row.cutoff, row.inv_temperature, summary.max, summary.inv_sum);
}

void scaled_weights(const Row& row, const RowSummary& summary, int64_t chunk, float* weights) {
  float buffer[kChunk];
  chunk_weights(load_chunk(row, chunk, buffer), row.cutoff, summary.max, row.inv_temperature, weights);
}

void gumbel_scores(const Row& row, const RowSummary& summary, const DrawKey& key, int64_t chunk, float* scores) {
  float buffer[kChunk];
  add_gumbel(load_chunk(row, chunk, buffer), row.cutoff, summary.max, row.inv_temperature, key.seed, key.position,
             gumbel_counter(chunk * kChunk), scores);
}

bool gumbel_hopeless(const Row& row, const RowSummary& summary, const ChunkStats& stats) {
  return fused_multiply_add(stats.max - summary.max, row.inv_temperature, kGumbelMax) < -3.0f;
}

int64_t draw_token(const Row& row, const RowSummary& summary, const DrawKey& key, RowScratch& scratch) {
  if (key.mode == Mode::kGreedy) return argmax(row, summary, scratch);
  if (key.mode == Mode::kGumbel) return argmax_gumbel(row, summary, key, scratch);
  return draw_inverse_cdf(row, summary, uniform(key.seed, key.position, key.lane, key.purpose), scratch);
}

int64_t read_and_draw(const Row& row, const DrawKey& key, RowScratch& scratch) {
  const RowSummary summary = key.mode == Mode::kInverseCdf ? read_sums(row, scratch) : read_max(row, scratch);
  return summary.valid ? draw_token(row, summary, key, scratch) : -1;
}

double residual_mass(const Residual& residual, RowScratch& scratch) {
  const int64_t num_chunks = residual.target.num_chunks();
  if (static_cast<int64_t>(scratch.masses.size()) < num_chunks) scratch.masses.resize(num_chunks);
  parallel_for(num_chunks, 2 * microseconds_to_read(residual.target.size), [&](int64_t c) {
    float weights[kChunk];
    residual_weights(residual, c, weights);
    scratch.masses[c] = lane_sum(weights);
  });
  double mass = 0.0;
  for (int64_t c = 0; c < num_chunks; ++c) mass += scratch.masses[c];
  return mass;
}

int64_t draw_residual(const Residual& residual, double mass, double uniform, RowScratch& scratch) {
  const double target = uniform * mass;
  double before = 0.0;
  const auto mass_of = [&](int64_t c) { return scratch.masses[c]; };
  const int64_t c = pick_chunk(residual.target.num_chunks(), target, mass_of, &before);
  float weights[kChunk];
  residual_weights(residual, c, weights);
  return c * kChunk + pick_in_chunk(weights, 1.0, target - before);
}

}  // namespace specbranch::cpu
