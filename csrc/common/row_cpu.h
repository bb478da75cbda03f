// Reading one row of logits on the CPU: the definitions of distribution.h as loops over chunks of 1024 tokens. Shared
// by sample, branch_topk, logit_cutoff, verify and verify_tree. A row is read once for max and sum; a draw re-reads one
// chunk. Long rows spread their chunks over threads (common/parallel.h), with the same result.
#pragma once

#include <vector>

#include "common/distribution.h"
#include "ops.h"

namespace specbranch::cpu {

// About what max and sums of so many logits take on one core: for the decision about threads.
inline double microseconds_to_read(int64_t num_logits) { return static_cast<double>(num_logits) / 3000.0; }

struct Row {
  const void* data;
  DType dtype;
  int64_t size;
  float inv_temperature;
  float cutoff;  // -inf: keep all

  int64_t num_chunks() const { return (size + kChunk - 1) / kChunk; }
};

// Batch row b, position i. `cutoff` points at the row's own value, or is nullptr.
Row make_row(const Logits& logits, int64_t b, int64_t i, int64_t size, float temperature, const float* cutoff);

struct ChunkStats {
  float max;       // of the kept logits; -inf where none is kept
  float sum;       // of exp(y), y = (logit - max) / temperature
  float weighted;  // of exp(y) * y
  bool bad;        // a NaN or +inf logit
  double mass;     // sum, rescaled to the row's max
};

// How a token is to be drawn; for a row at temperature 0 the mode is kGreedy whatever the op was asked for.
enum class Mode { kGreedy, kInverseCdf, kGumbel };

struct DrawKey {
  Mode mode;
  int64_t seed;
  int64_t position;
  uint32_t lane;
  int32_t purpose;
};

Mode mode_of(Draw draw, float temperature);

// Per-thread buffers, grown once.
struct RowScratch {
  std::vector<ChunkStats> chunks;
  std::vector<double> masses;
};
RowScratch& thread_scratch();

// The chunk's logits as float32: in place where they already are, else in `buffer`, padded with -inf.
const float* load_chunk(const Row& row, int64_t chunk, float* buffer);

// Max only, or max, sums and masses (and what the entropy needs), of the row; fills scratch.chunks.
RowSummary read_max(const Row& row, RowScratch& scratch);
RowSummary read_sums(const Row& row, RowScratch& scratch, bool with_entropy = false);

float logit_at(const Row& row, int64_t token);
float probability_of(const Row& row, const RowSummary& summary, int64_t token);

// exp((logit - max) / temperature) of one chunk; 0 for what is cut.
void scaled_weights(const Row& row, const RowSummary& summary, int64_t chunk, float* weights);

// Scores of one chunk for coupled draws: (logit - max) / temperature + Gumbel noise; -inf for what is cut.
void gumbel_scores(const Row& row, const RowSummary& summary, const DrawKey& key, int64_t chunk, float* scores);
// No token of the chunk can beat the row's best score.
bool gumbel_hopeless(const Row& row, const RowSummary& summary, const ChunkStats& stats);

// A token of the row after read_sums (kGreedy and kGumbel need read_max only). summary.valid must hold.
int64_t draw_token(const Row& row, const RowSummary& summary, const DrawKey& key, RowScratch& scratch);
// Reads the row as far as the mode needs and draws; -1: bad row.
int64_t read_and_draw(const Row& row, const DrawKey& key, RowScratch& scratch);

// Residual of rejection sampling after num_scales + 1 rejections: f_0 = target probability,
// f_k = max(0, f_{k-1} - draft probability) * scales[k-1]; the weight is max(0, f_n - draft probability), n =
// num_scales. All in one fixed order, as for `sum` in distribution.h (relative to nothing: these are probabilities).
struct Residual {
  Row target, draft;
  RowSummary target_summary, draft_summary;
  const float* scales;
  int num_scales;
};
double residual_mass(const Residual& residual, RowScratch& scratch);
// Inverse CDF in token order; residual_mass must have been called last with this scratch, and be > 0.
int64_t draw_residual(const Residual& residual, double mass, double uniform, RowScratch& scratch);

}  // namespace specbranch::cpu
