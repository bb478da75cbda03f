// verify on the GPU. Formula: verify.h; probabilities: common/distribution.h.
// Layout: target_logits [B, G+1, V], draft_logits [B, G, V], rows contiguous.
// Work:   two launches. The first reads every row that may be needed once: a warp a chunk of 1024 tokens, grid over
//         (batch row, row, group of chunks), and leaves 16 bytes a chunk. In the second, `splits` blocks a batch row
//         each go through the chain by themselves (a warp a position: that costs no exchange between blocks), then
//         share what needs logits again: the residual of the one rejected position, or, coupled, the Gumbel noise of
//         all positions. The last to finish adds up, draws and writes.
// Bound:  the first launch by the bytes of 2m+1 rows (m = chain length; m+1 where greedy or coupled); the second by
//         latency: summing the chunks of a row in order, one draw, and at batch 1 a residual spread over all SMs.
// Order:  fixed in common/distribution.h; how many blocks and warps share the work changes no bit.
// A bad row (NaN) counts only where the walk comes to it, as on the CPU.
#pragma once

#include "common/residual.cuh"
#include "verify/verify.h"
#include "verify/verify_plan.h"

namespace specbranch::SB_GPU {

static_assert(sizeof(ChunkStats) == kChunkStatsBytes && sizeof(Best) == kShareBytes && sizeof(double) == kShareBytes,
              "verify_plan.h knows these sizes");

// In place of a token.
constexpr int32_t kBadRow = -1, kRejected = -2, kBonus = -3;

// What a warp finds at one position: the target's own token (greedy, coupled), or the drafted one where it is accepted,
// or kRejected, kBonus (after the chain), kBadRow.
struct Finding {
  int32_t token;
  RowSummary target, draft;
};

// Batch row b as the kernels see it. Values that the host could not check are brought into their ranges.
struct Chain {
  const VerifyParams& p;
  const VerifyPlan& plan;
  int64_t b;

  __device__ float temperature() const { return p.temperature[b]; }
  __device__ Mode mode() const { return mode_of(p.draw, temperature()); }
  __device__ int32_t length() const { return clamp(p.chain_length[b], p.G); }
  __device__ int32_t num_branches() const { return clamp(p.num_branches[b], p.K); }
  __device__ int32_t drafted(int32_t i) const { return p.draft_tokens[b * p.G + i]; }

  __device__ Row target_row(int64_t i) const {
    const float* cutoff = p.target_cutoff != nullptr ? p.target_cutoff + b * (p.G + 1) + i : nullptr;
    return make_row(p.target_logits, b, i, p.V, temperature(), cutoff);
  }
  __device__ Row draft_row(int64_t i) const {
    const float* cutoff = p.draft_cutoff != nullptr ? p.draft_cutoff + b * p.G + i : nullptr;
    return make_row(p.draft_logits, b, i, p.V, temperature(), cutoff);
  }

  __device__ ChunkStats* target_chunks(int64_t i) const {
    return static_cast<ChunkStats*>(p.workspace) + (b * plan.rows + i) * plan.chunks;
  }
  __device__ ChunkStats* draft_chunks(int64_t i) const { return target_chunks(p.G + 1 + i); }
  __device__ double* masses() const { return reinterpret_cast<double*>(shares()) + b * plan.chunks; }
  __device__ Best* bests(int64_t i) const {
    return reinterpret_cast<Best*>(shares()) + (b * (p.G + 1) + i) * plan.chunks;
  }
  __device__ uint32_t* arrived() const {
    return reinterpret_cast<uint32_t*>(static_cast<char*>(p.workspace) + plan.arrived_offset) + b;
  }

 private:
  __device__ char* shares() const { return static_cast<char*>(p.workspace) + plan.shares_offset; }
  __device__ static int32_t clamp(int32_t value, int64_t high) {
    return value < 0 ? 0 : value > high ? static_cast<int32_t>(high) : value;
  }
};

// ---------------------------------------------------------------------------------------------- first launch
__global__ void __launch_bounds__(kVerifyWarps* kRowLanes) verify_read_kernel(VerifyParams p, VerifyPlan plan) {
  const int64_t group = blockIdx.x % plan.groups, r = blockIdx.x / plan.groups % plan.rows;
  const Chain chain{p, plan, static_cast<int64_t>(blockIdx.x / plan.groups / plan.rows)};
  if (group == 0 && r == 0 && threadIdx.x == 0) *chain.arrived() = 0;
  const bool is_draft = r > p.G, rejection = chain.mode() == Mode::kInverseCdf;
  const int64_t i = is_draft ? r - p.G - 1 : r, c = group * warps_of_block() + this_warp();
  const bool needed = is_draft ? rejection && i < chain.length() : i <= chain.length();
  if (!needed || c >= plan.chunks) return;
  const Row row = is_draft ? chain.draft_row(i) : chain.target_row(i);
  const ChunkStats stats = read_chunk(row, c, rejection ? Read::kSums : Read::kMax);
  if (this_lane() == 0) (is_draft ? chain.draft_chunks(i) : chain.target_chunks(i))[c] = stats;
}

// ---------------------------------------------------------------------------------------------- second launch
__device__ inline Finding examine_rejection(const Chain& chain, int32_t i) {
  const VerifyParams& p = chain.p;
  Finding found{kBonus, {}, {}};
  const Row target = chain.target_row(i);
  found.target = summarize(chain.target_chunks(i), chain.plan.chunks, target.inv_temperature, Read::kSums);
  if (!found.target.valid) found.token = kBadRow;
  if (i == chain.length()) return found;
  const Row draft = chain.draft_row(i);
  const int32_t drafted = chain.drafted(i);
  found.draft = summarize(chain.draft_chunks(i), chain.plan.chunks, draft.inv_temperature, Read::kSums);
  if (!found.target.valid || !found.draft.valid || drafted < 0 || drafted >= p.V) {
    found.token = kBadRow;
    return found;
  }
  const double u = accept_uniform(p.seed[chain.b], p.position[chain.b] + i, 0);
  const bool accepted =
      accepts(u, probability_of(draft, found.draft, drafted), probability_of(target, found.target, drafted));
  found.token = accepted ? drafted : kRejected;
  return found;
}

// The best of a row whose chunks have been scored.
__device__ inline int32_t best_token(const Best* bests, int64_t num_chunks) {
  Best best{-kInfinity, -1};
  for (int64_t c = this_lane(); c < num_chunks; c += kRowLanes) best = better(best, bests[c]);
  return warp_best(best).token;
}

__device__ inline Finding examine_target(const Chain& chain, int32_t i) {
  Finding found{kBadRow, summarize_max(chain.target_chunks(i), chain.plan.chunks), {}};
  if (!found.target.valid) return found;
  if (chain.mode() == Mode::kGreedy)
    found.token = static_cast<int32_t>(argmax(chain.target_row(i), found.target, chain.target_chunks(i)));
  else
    found.token = best_token(chain.bests(i), chain.plan.chunks);
  return found;
}

// The first position whose token is not the drafted one, at the latest the one after the chain. The positions are taken
// in order, a warp each; *found: what is there. For whole blocks.
__device__ inline int32_t walk(const Chain& chain, Finding* found) {
  __shared__ Finding findings[kVerifyWarps];
  const int32_t length = chain.length();
  const bool rejection = chain.mode() == Mode::kInverseCdf;
  for (int32_t base = 0;; base += warps_of_block()) {
    const int32_t own = base + this_warp();
    if (own <= length) {
      const Finding finding = rejection ? examine_rejection(chain, own) : examine_target(chain, own);
      if (this_lane() == 0) findings[this_warp()] = finding;
    }
    __syncthreads();
    for (int32_t i = base; i <= length && i < base + warps_of_block(); ++i) {
      *found = findings[i - base];
      if (i == length || found->token != chain.drafted(i)) return i;
    }
    __syncthreads();
  }
}

// This block's part of the Gumbel noise, contiguous for each warp, so that a row's maximum is looked up once.
__device__ inline void score_share(const Chain& chain, int64_t split) {
  const VerifyParams& p = chain.p;
  const int64_t chunks = chain.plan.chunks, items = (chain.length() + 1) * chunks;
  const int64_t workers = chain.plan.splits * warps_of_block(), each = (items + workers - 1) / workers;
  const int64_t first = (split * warps_of_block() + this_warp()) * each;
  const int64_t end = first + each < items ? first + each : items;
  RowSummary summary{};
  for (int64_t item = first; item < end; ++item) {
    const int64_t i = item / chunks, c = item % chunks;
    if (item == first || c == 0) summary = summarize_max(chain.target_chunks(i), chunks);
    Best best{-kInfinity, -1};
    if (summary.valid) {
      best = gumbel_best(chain.target_row(i), summary, chain.target_chunks(i)[c], p.seed[chain.b],
                         p.position[chain.b] + i, c);
    }
    if (this_lane() == 0) chain.bests(i)[c] = best;
  }
}

__device__ inline Residual residual_at(const Chain& chain, int32_t i, const Finding& found) {
  return Residual{chain.target_row(i), chain.draft_row(i), found.target, found.draft, nullptr, 0};
}

// The token to end with. An empty residual (equal rows, and a token that neither can produce) leaves the target's own
// distribution.
__device__ inline int64_t draw_next(const Chain& chain, int32_t i, const Finding& found) {
  if (found.token != kRejected && found.token != kBonus) return found.token;
  const double u = recover_uniform(chain.p.seed[chain.b], chain.p.position[chain.b] + i);
  if (found.token == kRejected) {
    const double total = total_mass(chain.masses(), chain.plan.chunks);
    if (total > 0.0) return draw_residual(residual_at(chain, i, found), chain.masses(), total, u);
  }
  return draw_inverse_cdf(chain.target_row(i), found.target, chain.target_chunks(i), u);
}

__device__ inline void finish(const Chain& chain, int32_t i, const Finding& found) {
  if (this_warp() != 0) return;
  const VerifyParams& p = chain.p;
  const int32_t token = static_cast<int32_t>(draw_next(chain, i, found));
  if (this_lane() != 0) return;
  const bool whole = token >= 0 && i == chain.length();
  p.num_accepted[chain.b] = token >= 0 ? i : -1;
  p.next_token[chain.b] = token;
  p.survivor[chain.b] = whole ? match_branch(p.branch_tokens + chain.b * p.K, chain.num_branches(), token) : -1;
}

// Every block of a batch row comes to the same decisions, so they agree on who goes on without a word.
__global__ void __launch_bounds__(kVerifyWarps* kRowLanes, 1) verify_decide_kernel(VerifyParams p, VerifyPlan plan) {
  const Chain chain{p, plan, static_cast<int64_t>(blockIdx.x / plan.splits)};
  const int64_t split = blockIdx.x % plan.splits;
  const Mode mode = chain.mode();
  if (mode == Mode::kGreedy && split != 0) return;
  Finding found{};
  int32_t stop = 0;
  if (mode == Mode::kGumbel) {
    score_share(chain, split);
  } else {
    stop = walk(chain, &found);
    if (found.token != kRejected) {
      if (split == 0) finish(chain, stop, found);
      return;
    }
    residual_masses(residual_at(chain, stop, found), split * warps_of_block() + this_warp(),
                    plan.splits * warps_of_block(), chain.masses());
  }
  if (!last_to_arrive(chain.arrived(), plan.splits)) return;
  if (mode == Mode::kGumbel) stop = walk(chain, &found);
  finish(chain, stop, found);
}

inline void run_verify(const VerifyParams& p, Stream stream) {
  if (p.B == 0) return;
  const VerifyPlan plan = plan_verify(p.B, p.G, p.V, p.draw);
  const dim3 read_threads(threads_for(plan.chunks, kVerifyWarps));
  const dim3 decide_threads(threads_for(plan.chunks > p.G + 1 ? plan.chunks : p.G + 1, kVerifyWarps));
  launch(verify_read_kernel, dim3(static_cast<unsigned>(p.B * plan.rows * plan.groups)), read_threads, 0, stream, p,
         plan);
  launch(verify_decide_kernel, dim3(static_cast<unsigned>(p.B * plan.splits)), decide_threads, 0, stream, p, plan);
}

}  // namespace specbranch::SB_GPU
