// The gated activation of a Llama MLP.
//
//   out = gate / (1 + exp(-gate)) * up
//
// Layout: gate_up [rows, 2F] contiguous, F of gate then F of up; out [rows, F].
// Work:   element-wise, one read and one write; bound by memory bytes; rows spread over threads when there are many.
// exp is taken of -|gate| only, so that nothing overflows: sigmoid(x) = e / (1 + e) for x < 0, with e = exp(x).
#include <cmath>

#include "common/element.h"
#include "common/fast_math.h"
#include "common/lanes.h"
#include "common/parallel.h"
#include "ops.h"

namespace specbranch::cpu {
namespace {

SB_INLINE float silu(float x) {
  const float e = exp_nonpositive(-std::fabs(x));
  // The numerator keeps what a float32 exp(x) below its floor would lose: silu(-100) is 0 to 1e-38.
  return x * (x < 0 ? e : 1.0f) / (1.0f + e);
}

template <typename T>
SB_INLINE void gate_row(const SiluMulParams& p, int64_t row) {
  const T* gate = static_cast<const T*>(p.gate_up) + row * 2 * p.F;
  const T* up = gate + p.F;
  T* __restrict__ out = static_cast<T*>(p.out) + row * p.F;
  for (int64_t i = 0; i < p.F; ++i) from_float(silu(to_float(gate[i])) * to_float(up[i]), out + i);
}

SB_TARGET_CLONES void row_float32(const SiluMulParams& p, int64_t row) { gate_row<float>(p, row); }
SB_TARGET_CLONES void row_bfloat16(const SiluMulParams& p, int64_t row) { gate_row<BFloat16>(p, row); }
SB_TARGET_CLONES void row_float16(const SiluMulParams& p, int64_t row) { gate_row<Float16>(p, row); }

}  // namespace

void silu_mul(const SiluMulParams& p) {
  const auto row = p.dtype == DType::kFloat32 ? row_float32 : p.dtype == DType::kBFloat16 ? row_bfloat16 : row_float16;
  parallel_for(p.rows, static_cast<double>(p.rows * p.F) * 1e-3, [&](int64_t i) { row(p, i); });
}

}  // namespace specbranch::cpu
