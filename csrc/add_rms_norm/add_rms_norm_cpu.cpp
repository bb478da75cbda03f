// Residual addition and RMS normalisation of the rows of a matrix.
//
//   residual += delta (if given)          out = residual / sqrt(mean(residual^2) + eps) * weight
//
// Layout: residual, delta, out [rows, D] contiguous, weight [D], all of one dtype.
// Work:   a row is read once (twice from cache); rows are independent and spread over threads when there are many.
// Order:  the mean square is summed in 16 lanes (element i in lane i % 16), lanes added pairwise: fixed, whatever the
//         instruction set. The sum is rounded to the dtype first, so that it equals what the residual stores.
#include <cmath>

#include "common/element.h"
#include "common/lanes.h"
#include "common/parallel.h"
#include "ops.h"

namespace specbranch::cpu {
namespace {

template <typename T>
SB_INLINE void normalise_row(const AddRmsNormParams& p, int64_t row) {
  T* residual = static_cast<T*>(p.residual) + row * p.D;
  T* out = static_cast<T*>(p.out) + row * p.D;
  const T* weight = static_cast<const T*>(p.weight);
  if (p.delta != nullptr) {
    const T* delta = static_cast<const T*>(p.delta) + row * p.D;
    for (int64_t i = 0; i < p.D; ++i) from_float(to_float(residual[i]) + to_float(delta[i]), residual + i);
  }
  const float mean_square = sum_of_squares(residual, p.D) / static_cast<float>(p.D);
  const float factor = 1.0f / std::sqrt(mean_square + p.eps);
  for (int64_t i = 0; i < p.D; ++i) from_float(to_float(residual[i]) * factor * to_float(weight[i]), out + i);
}

SB_TARGET_CLONES void row_float32(const AddRmsNormParams& p, int64_t row) { normalise_row<float>(p, row); }
SB_TARGET_CLONES void row_bfloat16(const AddRmsNormParams& p, int64_t row) { normalise_row<BFloat16>(p, row); }
SB_TARGET_CLONES void row_float16(const AddRmsNormParams& p, int64_t row) { normalise_row<Float16>(p, row); }

}  // namespace

void add_rms_norm(const AddRmsNormParams& p) {
  const auto row = p.dtype == DType::kFloat32 ? row_float32 : p.dtype == DType::kBFloat16 ? row_bfloat16 : row_float16;
  parallel_for(p.rows, static_cast<double>(p.rows * p.D) * 5e-4, [&](int64_t i) { row(p, i); });
}

}  // namespace specbranch::cpu
