// What one round decided, written into the state that the next round starts from: formulas in advance.h.
// Layout: see AdvanceParams. Work: one block of up to 1024 threads, a thread a batch row: a few dozen integers each,
// which
//         at batch 1 cost less than a second launch or a barrier would. Bound: by latency. No sums, so no order; the
//         round is counted once all rows have read it.
#pragma once

#include "advance/advance.h"
#include "common/gpu.h"

namespace specbranch::SB_GPU {

__global__ void advance_kernel(AdvanceParams p) {
  for (int64_t b = threadIdx.x; b < p.B; b += blockDim.x) {
    advance_row(p, b);
    next_inputs(p, b);
  }
  __syncthreads();
  if (threadIdx.x == 0) ++*p.round;
}

inline void run_advance(const AdvanceParams& p, Stream stream) {
  const int64_t warps = ceil_div(p.B > 0 ? p.B : 1, 32);
  launch(advance_kernel, dim3(1), dim3(static_cast<unsigned>(32 * (warps < 32 ? warps : 32))), 0, stream, p);
}

}  // namespace specbranch::SB_GPU
