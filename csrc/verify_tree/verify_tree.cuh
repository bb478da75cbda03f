// verify_tree on the GPU: a walk from the root, one level at a time. At a node:
//   deterministic children, temperature 0 or coupled: one draw of the target, matched against the children (lowest
//   first) sampled children: multi-round rejection. f_0 = target; child r is accepted by u_r * draft(x_r) < f_r(x_r),
//   else f_{r+1} = norm(max(0, f_r - draft)); after the last rejection the next token is drawn from f.
// A chain is a tree with one child a node: the uniforms, rows and arithmetic are then those of verify, bit for bit.
// Layout: target_logits and draft_logits [B, N+1, V], row 0 the root, row i+1 node i.
// Work:   two launches, as verify. The first reads every row that the walk may come to. In the second all blocks of a
//         batch row walk alike, every warp for itself, up to the first residual; that (coupled: the noise of all rows)
//         they share, and the last to finish walks on and writes. Residuals after the first are its own work.
// Bound:  the first launch by the bytes of the target's rows, and of draft rows that nodes were sampled from; the
// second
//         by latency, a level at a time; and by the arithmetic of one SM (50 instructions a token) for each residual
//         but the first: two siblings rejected at one node, or rejections at two nodes.
// Order:  fixed in common/distribution.h. A bad row (NaN) counts only where the walk comes to it, as on the CPU.
#pragma once

#include "verify/shares.cuh"
#include "verify/verify.h"

namespace specbranch::SB_GPU {

// Batch row b as the kernels see it.
struct Tree {
  const VerifyTreeParams& p;
  int64_t b;

  __device__ float temperature() const { return p.temperature[b]; }
  __device__ Mode mode() const { return mode_of(p.draw, temperature()); }
  __device__ int32_t num_nodes() const { return clamp_count(p.num_nodes[b], p.N); }
  __device__ int32_t token(int32_t node) const { return p.tokens[b * p.N + node]; }
  __device__ int32_t parent(int32_t node) const { return p.parents[b * p.N + node]; }
  __device__ int64_t seed() const { return p.seed[b]; }

  // The first child of `node` at or behind `from`; -1: none.
  __device__ int32_t next_child(int32_t node, int32_t from) const {
    const int32_t count = num_nodes();
    for (int32_t base = from; base < count; base += kRowLanes) {
      const int32_t own = base + this_lane();
      const uint32_t children = __ballot_sync(kFullMask, own < count && parent(own) == node);
      if (children != 0) return base + __ffs(static_cast<int>(children)) - 1;
    }
    return -1;
  }
  // Whether the children of a node are verified by rejection: its draft row is needed.
  __device__ bool rejects(int32_t first_child) const {
    return first_child >= 0 && p.sampled != nullptr && p.sampled[b * p.N + first_child] != 0 &&
           mode() == Mode::kInverseCdf;
  }
  // Of the token that row r is the distribution of. Parents come before their children.
  __device__ int64_t row_position(int64_t r) const {
    int64_t depth = 0;
    for (int32_t node = static_cast<int32_t>(r) - 1, next; node >= 0; node = next, ++depth) {
      next = parent(node);
      if (next >= node) break;
    }
    return p.position[b] + depth;
  }

  __device__ Row target_row(int64_t r) const { return row(p.target_logits, p.target_cutoff, r); }
  __device__ Row draft_row(int64_t r) const { return row(p.draft_logits, p.draft_cutoff, r); }

 private:
  __device__ Row row(const Logits& logits, const float* cutoff, int64_t r) const {
    return make_row(logits, b, r, p.V, temperature(), cutoff != nullptr ? cutoff + b * (p.N + 1) + r : nullptr);
  }
};

// ---------------------------------------------------------------------------------------------- first launch
__global__ void __launch_bounds__(kVerifyWarps* kRowLanes) tree_read_kernel(VerifyTreeParams p, VerifyPlan plan) {
  const int64_t group = blockIdx.x % plan.groups, r = blockIdx.x / plan.groups % plan.rows;
  const Tree tree{p, static_cast<int64_t>(blockIdx.x / plan.groups / plan.rows)};
  const Shares shares{p.workspace, plan, tree.b};
  if (group == 0 && r == 0 && threadIdx.x == 0) *shares.arrived() = 0;
  const bool is_draft = r >= plan.targets;
  const int64_t i = is_draft ? r - plan.targets : r, c = group * warps_of_block() + this_warp();
  if (i > tree.num_nodes() || c >= plan.chunks) return;
  const int32_t node = static_cast<int32_t>(i) - 1;
  if (is_draft && !tree.rejects(tree.next_child(node, node + 1))) return;
  const Row row = is_draft ? tree.draft_row(i) : tree.target_row(i);
  const ChunkStats stats = read_chunk(row, c, tree.mode() == Mode::kInverseCdf ? Read::kSums : Read::kMax);
  if (this_lane() == 0) shares.chunks(r)[c] = stats;
}

// ---------------------------------------------------------------------------------------------- second launch
// What happened at one node: a child taken (>= 0), or none and the token to end with (kBadRow), or kElsewhere: another
// block goes on.
struct Step {
  int32_t child, token;
};
constexpr int32_t kElsewhere = -2;

// The walk of a block; all its threads come to the same.
struct Walk {
  const Tree& tree;
  const Shares& shares;
  int64_t split;
  float* scales;  // shared memory, [N]
  int num_scales = 0;
  bool alone = false;  // the other blocks have left

  __device__ Walk(const Tree& tree_, const Shares& shares_, int64_t split_, float* scales_)
      : tree(tree_), shares(shares_), split(split_), scales(scales_) {}

  __device__ Step visit(int32_t node, int64_t position) {
    const int32_t first = tree.next_child(node, node + 1);
    if (tree.rejects(first)) return visit_sampled(node, first, position);
    const int32_t token = target_token(node, position);
    if (token < 0) return {-1, kBadRow};
    int32_t child = first;
    while (child >= 0 && tree.token(child) != token) child = tree.next_child(node, child + 1);
    return {child, token};
  }

 private:
  __device__ int32_t target_token(int32_t node, int64_t position) const {
    const ChunkStats* chunks = shares.chunks(node + 1);
    const Mode mode = tree.mode();
    const Row row = tree.target_row(node + 1);
    const Read read = mode == Mode::kInverseCdf ? Read::kSums : Read::kMax;
    const RowSummary summary = summarize(chunks, shares.plan.chunks, row.inv_temperature, read);
    if (!summary.valid) return kBadRow;
    if (mode == Mode::kGumbel) return best_token(shares.bests(node + 1), shares.plan.chunks);
    if (mode == Mode::kGreedy) return static_cast<int32_t>(argmax(row, summary, chunks));
    return static_cast<int32_t>(draw_inverse_cdf(row, summary, chunks, recover_uniform(tree.seed(), position)));
  }

  __device__ Step visit_sampled(int32_t node, int32_t first, int64_t position) {
    Residual residual{tree.target_row(node + 1), tree.draft_row(node + 1), {}, {}, scales, 0};
    const int64_t chunks = shares.plan.chunks;
    const float inv_temperature = residual.target.inv_temperature;
    residual.draft_summary = summarize(shares.draft_chunks(node + 1), chunks, inv_temperature, Read::kSums);
    residual.target_summary = summarize(shares.chunks(node + 1), chunks, inv_temperature, Read::kSums);
    if (!residual.draft_summary.valid || !residual.target_summary.valid) return {-1, kBadRow};
    num_scales = 0;
    double mass = 0.0;
    uint32_t sibling = 0;
    for (int32_t child = first; child >= 0; child = tree.next_child(node, child + 1), ++sibling) {
      const int32_t token = tree.token(child);
      if (token < 0 || token >= tree.p.V) return {-1, kBadRow};
      const double u = accept_uniform(tree.seed(), position, sibling);
      const float draft = probability_of(residual.draft, residual.draft_summary, token);
      if (accepts(u, draft, current_probability(residual, draft, token))) return {child, token};
      if (!read_masses(residual, num_scales)) return {-1, kElsewhere};
      mass = total_mass(shares.masses(), chunks);
      push_scale(mass);
    }
    return {-1, recover(residual, shares.chunks(node + 1), mass, position)};
  }

  // f_r of a token, r = number of rejections so far.
  __device__ float current_probability(const Residual& residual, float draft, int32_t token) const {
    float value = probability_of(residual.target, residual.target_summary, token);
    for (int k = 0; k < num_scales; ++k) value = residual_weight(value, draft, scales[k]);
    return value;
  }

  // The chunk masses of the residual: the first of a batch row with all its blocks. False: this one is done.
  __device__ bool read_masses(Residual& residual, int scales_in_use) {
    residual.num_scales = scales_in_use;
    const int64_t workers = alone ? 1 : shares.plan.splits, worker = alone ? 0 : split;
    __syncthreads();  // nobody reads the masses of the time before
    residual_masses(residual, worker * warps_of_block() + this_warp(), workers * warps_of_block(), shares.masses());
    if (!alone && !last_to_arrive(shares.arrived(), workers)) return false;
    alone = true;
    __syncthreads();
    return true;
  }

  // An empty residual (the two are equal up to rounding) leaves f as it was.
  __device__ void push_scale(double mass) {
    if (mass <= 0.0) return;
    if (threadIdx.x == 0) scales[num_scales] = static_cast<float>(1.0 / mass);
    ++num_scales;
    __syncthreads();
  }

  // After the last rejection; `mass` is what it left.
  __device__ int32_t recover(Residual& residual, const ChunkStats* chunks, double mass, int64_t position) {
    const double u = recover_uniform(tree.seed(), position);
    if (num_scales == 0)
      return static_cast<int32_t>(draw_inverse_cdf(residual.target, residual.target_summary, chunks, u));
    if (mass <= 0.0) {  // the last one left nothing: back to what the one before it left
      read_masses(residual, num_scales - 1);
      mass = total_mass(shares.masses(), shares.plan.chunks);
    }
    return static_cast<int32_t>(draw_residual(residual, shares.masses(), mass, u));
  }
};

// The path ends at `node`; it is found backwards.
__device__ inline void write_outcome(const Tree& tree, int32_t node, int32_t length, int32_t token) {
  const VerifyTreeParams& p = tree.p;
  int32_t* path = p.path + tree.b * p.N;
  const int32_t accepted = token == kBadRow ? 0 : length;
  for (int64_t i = accepted + threadIdx.x; i < p.N; i += blockDim.x) path[i] = -1;
  if (threadIdx.x != 0) return;
  for (int32_t i = accepted; i > 0; node = tree.parent(node)) path[--i] = node;
  p.num_accepted[tree.b] = token == kBadRow ? -1 : length;
  p.next_token[tree.b] = token;
}

__global__ void __launch_bounds__(kVerifyWarps* kRowLanes, 1) tree_decide_kernel(VerifyTreeParams p, VerifyPlan plan) {
  SB_DYNAMIC_SHARED(float, scales);
  const Tree tree{p, static_cast<int64_t>(blockIdx.x / plan.splits)};
  const Shares shares{p.workspace, plan, tree.b};
  const int64_t split = blockIdx.x % plan.splits;
  Walk walk(tree, shares, split, scales);
  if (tree.mode() == Mode::kGumbel) {
    score_share(tree, shares, tree.num_nodes() + 1, split);
    if (!last_to_arrive(shares.arrived(), plan.splits)) return;
    walk.alone = true;
  }
  int32_t node = -1, length = 0;
  Step step = walk.visit(node, p.position[tree.b]);
  for (; step.child >= 0; step = walk.visit(node, p.position[tree.b] + length)) {
    node = step.child;
    ++length;
  }
  if (step.token != kElsewhere && (walk.alone || split == 0)) write_outcome(tree, node, length, step.token);
}

inline void run_verify_tree(const VerifyTreeParams& p, Stream stream) {
  if (p.B == 0) return;
  const VerifyPlan plan = plan_verify_tree(p.B, p.N, p.V, p.draw);
  const dim3 threads(threads_for(plan.chunks, kVerifyWarps));
  launch(tree_read_kernel, dim3(static_cast<unsigned>(p.B * plan.rows * plan.groups)), threads, 0, stream, p, plan);
  launch(tree_decide_kernel, dim3(static_cast<unsigned>(p.B * plan.splits)), threads,
         static_cast<size_t>(p.N) * sizeof(float), stream, p, plan);
}

}  // namespace specbranch::SB_GPU
