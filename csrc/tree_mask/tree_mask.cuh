// Ancestor bits and depth of every node of a speculation tree.
//
//   bits[i]  = bits[parent(i)] | 1 << i          depth[i] = depth[parent(i)] + 1,  0 below the root (parent -1)
//
// Layout: parents [B, N]; bits [B, N, W] little-endian words, bit j of row i in word j / 32; depth [B, N].
// Work:   pointer doubling: after round r a node knows its nearest 2^r ancestors (itself counted) and points to the one
//         above them, so a tree of depth d takes log2(d) rounds, not d. A block makes one word of every row of one
//         tree, grid (W, B); block 0 of a tree writes the depths too. A thread owns nodes t, t + threads, ...
// Bound:  by latency: a barrier per round; two copies of (pointer, depth, word) in shared memory, 24 bytes a node,
//         for at most kMaskNodes nodes.
// Order:  integers only. A parent that is not before its child, which the host cannot see on the device, counts as -1.
#pragma once

#include <stdexcept>
#include <string>

#include "common/gpu.h"

namespace specbranch::SB_GPU {

constexpr int64_t kMaskThreads = 256;
constexpr int64_t kMaskNodes = 2048;

// What a node knows so far.
struct Ancestry {
  int32_t above;  // nearest ancestor that is not known yet, -1: none
  int32_t depth;  // edges known
  uint32_t bits;  // known nodes among those of this block's word
};

__device__ inline Ancestry join(Ancestry node, const Ancestry* known) {
  if (node.above < 0) return node;
  const Ancestry more = known[node.above];
  return {more.above, node.depth + more.depth, node.bits | more.bits};
}

__device__ inline Ancestry alone(const int32_t* parents, int i, int word) {
  const int32_t parent = parents[i] >= 0 && parents[i] < i ? parents[i] : -1;
  return {parent, parent >= 0 ? 1 : 0, i / 32 == word ? 1u << (i % 32) : 0u};
}

__global__ void tree_mask_kernel(int nodes, const int32_t* parents, uint32_t* bits, int32_t* depth) {
  SB_DYNAMIC_SHARED(Ancestry, now);
  Ancestry* next = now + nodes;
  const int word = static_cast<int>(blockIdx.x), words = static_cast<int>(gridDim.x);
  const int64_t first = static_cast<int64_t>(blockIdx.y) * nodes;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int i = thread; i < nodes; i += threads) now[i] = alone(parents + first, i, word);
  int open = 1;
  while (__syncthreads_or(open)) {
    open = 0;
    for (int i = thread; i < nodes; i += threads) {
      next[i] = join(now[i], now);
      open |= next[i].above >= 0;
    }
    Ancestry* swapped = now;
    now = next, next = swapped;
  }
  for (int i = thread; i < nodes; i += threads) {
    bits[(first + i) * words + word] = now[i].bits;
    if (word == 0) depth[first + i] = now[i].depth;
  }
}

inline void run_tree_mask(const TreeMaskParams& p, Stream stream) {
  if (p.N > kMaskNodes) {
    throw std::invalid_argument("parents had " + std::to_string(p.N) + " nodes, must have at most " +
                                std::to_string(kMaskNodes) + " on this backend");
  }
  if (p.B * p.N == 0) return;
  const int64_t threads = p.N < kMaskThreads ? ceil_div(p.N, 32) * 32 : kMaskThreads;
  launch(tree_mask_kernel, dim3(static_cast<unsigned>(p.W), static_cast<unsigned>(p.B)),
         dim3(static_cast<unsigned>(threads)), 2 * static_cast<size_t>(p.N) * sizeof(Ancestry), stream, p.N, p.parents,
         p.bits, p.depth);
}

}  // namespace specbranch::SB_GPU
