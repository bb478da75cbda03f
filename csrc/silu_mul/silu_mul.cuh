// The gated activation of a Llama MLP.
//
//   out = gate / (1 + exp(-gate)) * up
//
// Layout: gate_up [rows, 2F] contiguous, F of gate then F of up; out [rows, F].
// Work:   element-wise, a thread takes four neighbouring elements where alignment allows. Bound: by memory bytes, and
// by
//         latency for few rows; one launch. No sum, so no order.
// exp is taken of -|gate| only, so that nothing overflows: sigmoid(x) = e / (1 + e) for x < 0, with e = exp(x).
#pragma once

#include "common/fast_math.h"
#include "common/units.h"

namespace specbranch::SB_GPU {

constexpr int kSiluThreads = 256;

__device__ inline float silu(float x) {
  const float e = exp_nonpositive(-fabsf(x));
  return x * (x < 0 ? e : 1.0f) / (1.0f + e);
}

template <typename T, int kPack>
__global__ void silu_mul_kernel(SiluMulParams p) {
  const int64_t packs = p.F / kPack, index = static_cast<int64_t>(blockIdx.x) * kSiluThreads + threadIdx.x;
  if (index >= p.rows * packs) return;
  const int64_t row = index / packs, column = index % packs * kPack;
  const T* source = static_cast<const T*>(p.gate_up) + row * 2 * p.F + column;
  auto gate = load_pack<T, kPack>(source);
  const auto up = load_pack<T, kPack>(source + p.F);
  for (int k = 0; k < kPack; ++k) {
    from_float(silu(to_float(gate.values[k])) * to_float(up.values[k]), &gate.values[k]);
  }
  store_pack<T, kPack>(gate, static_cast<T*>(p.out) + row * p.F + column);
}

template <typename T, int kPack>
void launch_silu(const SiluMulParams& p, Stream stream) {
  const auto blocks = static_cast<unsigned>(ceil_div(p.rows * (p.F / kPack), kSiluThreads));
  launch(silu_mul_kernel<T, kPack>, dim3(blocks), dim3(kSiluThreads), 0, stream, p);
}

inline void run_silu_mul(const SiluMulParams& p, Stream stream) {
  if (p.rows == 0 || p.F == 0) return;
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    const bool packed = p.F % 4 == 0 && aligned({p.gate_up, p.out}, 4 * sizeof(T));
    packed ? launch_silu<T, 4>(p, stream) : launch_silu<T, 1>(p, stream);
  });
}

}  // namespace specbranch::SB_GPU
