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

#include "verify/shares.cuh"
#include "verify/verify.h"

namespace specbranch::SB_GPU {

// In place of a token, besides kBadRow.
constexpr int32_t kRejected = -2, kBonus = -3;

// What a warp finds at one position: the target's own token (greedy, coupled), or the drafted one where it is accepted,
// or kRejected, kBonus (after the chain), kBadRow.
struct Finding {
  int32_t token;
  RowSummary target, draft;
};

// Batch row b as the kernels see it.
struct Chain {
  const VerifyParams& p;
  int64_t b;

  __device__ float temperature() const { return p.temperature[b]; }
  __device__ Mode mode() const { return mode_of(p.draw, temperature()); }
  __device__ int32_t length() const { return clamp_count(p.chain_length[b], p.G); }
  __device__ int32_t num_branches() const { return clamp_count(p.num_branches[b], p.K); }
  __device__ int32_t drafted(int32_t i) const { return p.draft_tokens[b * p.G + i]; }
  __device__ int64_t seed() const { return p.seed[b]; }
  __device__ int64_t row_position(int64_t i) const { return p.position[b] + i; }

  __device__ Row target_row(int64_t i) const {
    const float* cutoff = p.target_cutoff != nullptr ? p.target_cutoff + b * (p.G + 1) + i : nullptr;
    return make_row(p.target_logits, b, i, p.V, temperature(), cutoff);
  }
  __device__ Row draft_row(int64_t i) const {
    const float* cutoff = p.draft_cutoff != nullptr ? p.draft_cutoff + b * p.G + i : nullptr;
    return make_row(p.draft_logits, b, i, p.V, temperature(), cutoff);
  }
};

// ---------------------------------------------------------------------------------------------- first launch
__global__ void __launch_bounds__(kVerifyWarps* kRowLanes) verify_read_kernel(VerifyParams p, VerifyPlan plan) {
  const int64_t group = blockIdx.x % plan.groups, r = blockIdx.x / plan.groups % plan.rows;
  const Chain chain{p, static_cast<int64_t>(blockIdx.x / plan.groups / plan.rows)};
  const Shares shares{p.workspace, plan, chain.b};
  if (group == 0 && r == 0 && threadIdx.x == 0) *shares.arrived() = 0;
  const bool is_draft = r > p.G, rejection = chain.mode() == Mode::kInverseCdf;
  const int64_t i = is_draft ? r - p.G - 1 : r, c = group * warps_of_block() + this_warp();
  const bool needed = is_draft ? rejection && i < chain.length() : i <= chain.length();
  if (!needed || c >= plan.chunks) return;
  const Row row = is_draft ? chain.draft_row(i) : chain.target_row(i);
  const ChunkStats stats = read_chunk(row, c, rejection ? Read::kSums : Read::kMax);
  if (this_lane() == 0) shares.chunks(r)[c] = stats;
}

// ---------------------------------------------------------------------------------------------- second launch
__device__ inline Finding examine_rejection(const Chain& chain, const Shares& shares, int32_t i) {
  const VerifyParams& p = chain.p;
  Finding found{kBonus, {}, {}};
  const Row target = chain.target_row(i);
  found.target = summarize(shares.chunks(i), shares.plan.chunks, target.inv_temperature, Read::kSums);
  if (!found.target.valid) found.token = kBadRow;
  if (i == chain.length()) return found;
  const Row draft = chain.draft_row(i);
  const int32_t drafted = chain.drafted(i);
  found.draft = summarize(shares.draft_chunks(i), shares.plan.chunks, draft.inv_temperature, Read::kSums);
  if (!found.target.valid || !found.draft.valid || drafted < 0 || drafted >= p.V) {
    found.token = kBadRow;
    return found;
  }
  const double u = accept_uniform(chain.seed(), chain.row_position(i), 0);
  const bool accepted =
      accepts(u, probability_of(draft, found.draft, drafted), probability_of(target, found.target, drafted));
  found.token = accepted ? drafted : kRejected;
  return found;
}

__device__ inline Finding examine_target(const Chain& chain, const Shares& shares, int32_t i) {
  Finding found{kBadRow, summarize_max(shares.chunks(i), shares.plan.chunks), {}};
  if (!found.target.valid) return found;
  if (chain.mode() == Mode::kGreedy)
    found.token = static_cast<int32_t>(argmax(chain.target_row(i), found.target, shares.chunks(i)));
  else
    found.token = best_token(shares.bests(i), shares.plan.chunks);
  return found;
}

// The first position whose token is not the drafted one, at the latest the one after the chain. The positions are taken
// in order, a warp each; *found: what is there. For whole blocks.
__device__ inline int32_t walk(const Chain& chain, const Shares& shares, Finding* found) {
  __shared__ Finding findings[kVerifyWarps];
  const int32_t length = chain.length();
  const bool rejection = chain.mode() == Mode::kInverseCdf;
  for (int32_t base = 0;; base += warps_of_block()) {
    const int32_t own = base + this_warp();
    if (own <= length) {
      const Finding finding = rejection ? examine_rejection(chain, shares, own) : examine_target(chain, shares, own);
      if (this_lane() == 0) findings[this_warp()] = finding;
    }
    __syncthreads();
    for (int32_t i = base; i <= length && i < base + warps_of_block(); ++i) {
      *found = findings[i - base];
      if (i == length || found->token < 0 || found->token != chain.drafted(i)) return i;
    }
    __syncthreads();
  }
}

__device__ inline Residual residual_at(const Chain& chain, int32_t i, const Finding& found) {
  return Residual{chain.target_row(i), chain.draft_row(i), found.target, found.draft, nullptr, 0};
}

// The token to end with. An empty residual (equal rows, and a token that neither can produce) leaves the target's own
// distribution.
__device__ inline int64_t draw_next(const Chain& chain, const Shares& shares, int32_t i, const Finding& found) {
  if (found.token != kRejected && found.token != kBonus) return found.token;
  const double u = recover_uniform(chain.seed(), chain.row_position(i));
  if (found.token == kRejected) {
    const double total = total_mass(shares.masses(), shares.plan.chunks);
    if (total > 0.0) return draw_residual(residual_at(chain, i, found), shares.masses(), total, u);
  }
  return draw_inverse_cdf(chain.target_row(i), found.target, shares.chunks(i), u);
}

__device__ inline void finish(const Chain& chain, const Shares& shares, int32_t i, const Finding& found) {
  if (this_warp() != 0) return;
  const VerifyParams& p = chain.p;
  const int32_t token = static_cast<int32_t>(draw_next(chain, shares, i, found));
  if (this_lane() != 0) return;
  const bool whole = token >= 0 && i == chain.length();
  p.num_accepted[chain.b] = token >= 0 ? i : -1;
  p.next_token[chain.b] = token;
  p.survivor[chain.b] = whole ? match_branch(p.branch_tokens + chain.b * p.K, chain.num_branches(), token) : -1;
}

// Every block of a batch row comes to the same decisions, so they agree on who goes on without a word.
__global__ void __launch_bounds__(kVerifyWarps* kRowLanes, 1) verify_decide_kernel(VerifyParams p, VerifyPlan plan) {
  const Chain chain{p, static_cast<int64_t>(blockIdx.x / plan.splits)};
  const Shares shares{p.workspace, plan, chain.b};
  const int64_t split = blockIdx.x % plan.splits;
  const Mode mode = chain.mode();
  if (mode == Mode::kGreedy && split != 0) return;
  Finding found{};
  int32_t stop = 0;
  if (mode == Mode::kGumbel) {
    score_share(chain, shares, chain.length() + 1, split);
  } else {
    stop = walk(chain, shares, &found);
    if (found.token != kRejected) {
      if (split == 0) finish(chain, shares, stop, found);
      return;
    }
    residual_masses(residual_at(chain, stop, found), split * warps_of_block() + this_warp(),
                    plan.splits * warps_of_block(), shares.masses());
  }
  if (!last_to_arrive(shares.arrived(), plan.splits)) return;
  if (mode == Mode::kGumbel) stop = walk(chain, shares, &found);
  finish(chain, shares, stop, found);
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
