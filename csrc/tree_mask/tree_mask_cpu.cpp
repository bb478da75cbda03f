// Ancestor bits and depth of every node of a speculation tree.
//
//   bits[i]  = bits[parent(i)] | 1 << i          depth[i] = depth[parent(i)] + 1,  0 below the root (parent -1)
//
// Layout: parents [B, N]; bits [B, N, W] little-endian words, bit j of row i in word j / 32; depth [B, N].
// Work:   parents precede their children, so one pass in node order reads each row once; rows of one tree depend on
//         each other, trees do not. Trees are small (N <= 64 or so): latency bound, no threads.
#include <algorithm>

#include "ops.h"

namespace specbranch::cpu {

void tree_mask(const TreeMaskParams& p) {
  for (int64_t b = 0; b < p.B; ++b) {
    const int32_t* parents = p.parents + b * p.N;
    uint32_t* bits = p.bits + b * p.N * p.W;
    int32_t* depth = p.depth + b * p.N;
    for (int64_t i = 0; i < p.N; ++i) {
      uint32_t* row = bits + i * p.W;
      const int64_t parent = parents[i];
      if (parent < 0) {
        std::fill(row, row + p.W, 0u);
        depth[i] = 0;
      } else {
        std::copy(bits + parent * p.W, bits + (parent + 1) * p.W, row);
        depth[i] = depth[parent] + 1;
      }
      row[i / 32] |= 1u << (i % 32);
    }
  }
}

}  // namespace specbranch::cpu
