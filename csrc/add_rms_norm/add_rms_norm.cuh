// Residual addition and RMS normalisation of the rows of a matrix.
//
//   residual += delta (if given)          out = residual / sqrt(mean(residual^2) + eps) * weight
//
// Layout: residual, delta, out [rows, D] contiguous, weight [D], all of one dtype.
// Work:   a block of 256 threads a row, four neighbouring elements an access where alignment allows; the second pass
//         reads what the first has written, from cache (each thread its own elements).
// Bound:  by latency for the few rows of a verification; one launch.
// Order:  a thread sums the squares of its elements in order, lanes meet in a butterfly of shuffles, the eight warps in
//         order. The sum of residual and delta is rounded to the dtype first: it is what the residual stores.
#pragma once

#include "common/units.h"

namespace specbranch::SB_GPU {

constexpr int kNormThreads = 256;

// The block's sum of one number a thread.
__device__ inline float block_sum(float value) {
  __shared__ float warps[kNormThreads / 32];
  for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(kFullMask, value, bits);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < kNormThreads / 32; ++w) sum += warps[w];
  return sum;
}

template <typename T, int kPack>
__global__ void add_rms_norm_kernel(AddRmsNormParams p) {
  const int64_t offset = blockIdx.x * p.D;
  T* residual = static_cast<T*>(p.residual) + offset;
  const T* delta = p.delta == nullptr ? nullptr : static_cast<const T*>(p.delta) + offset;
  const T* weight = static_cast<const T*>(p.weight);
  T* out = static_cast<T*>(p.out) + offset;
  float squares = 0.0f;
  for (int64_t i = threadIdx.x * kPack; i < p.D; i += kNormThreads * kPack) {
    auto sum = load_pack<T, kPack>(residual + i);
    if (delta != nullptr) {
      const auto more = load_pack<T, kPack>(delta + i);
      for (int k = 0; k < kPack; ++k) from_float(to_float(sum.values[k]) + to_float(more.values[k]), &sum.values[k]);
      store_pack<T, kPack>(sum, residual + i);
    }
    for (int k = 0; k < kPack; ++k) {
      squares = fused_multiply_add(to_float(sum.values[k]), to_float(sum.values[k]), squares);
    }
  }
  const float factor = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(p.D) + p.eps);
  for (int64_t i = threadIdx.x * kPack; i < p.D; i += kNormThreads * kPack) {
    auto value = load_pack<T, kPack>(residual + i);
    const auto scale = load_pack<T, kPack>(weight + i);
    for (int k = 0; k < kPack; ++k) {
      from_float(to_float(value.values[k]) * factor * to_float(scale.values[k]), &value.values[k]);
    }
    store_pack<T, kPack>(value, out + i);
  }
}

inline void run_add_rms_norm(const AddRmsNormParams& p, Stream stream) {
  if (p.rows == 0 || p.D == 0) return;
  const dim3 grid(static_cast<unsigned>(p.rows)), block(kNormThreads);
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    const bool packed = p.D % 4 == 0 && aligned({p.residual, p.delta, p.weight, p.out}, 4 * sizeof(T));
    packed ? launch(add_rms_norm_kernel<T, 4>, grid, block, 0, stream, p)
           : launch(add_rms_norm_kernel<T, 1>, grid, block, 0, stream, p);
  });
}

}  // namespace specbranch::SB_GPU
