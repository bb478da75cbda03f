// The gated activation of a Llama MLP.
//
//   out = gate / (1 + exp(-gate)) * up
//
// Layout: gate_up [rows, 2F] contiguous, F of gate then F of up; out [rows, F].
// Work:   element-wise; a task is up to 512 elements of a row; bound by exp while the rows are in a cache.
// exp is taken of -|gate| only, so that nothing overflows: sigmoid(x) = e / (1 + e) for x < 0, with e = exp(x).
#include <algorithm>
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

constexpr int64_t kPart = 512;

template <typename T>
SB_INLINE void gate_part(const SiluMulParams& p, int64_t row, int64_t first) {
  const T* gate = static_cast<const T*>(p.gate_up) + row * 2 * p.F;
  const T* up = gate + p.F;
  T* __restrict__ out = static_cast<T*>(p.out) + row * p.F;
  const int64_t last = std::min(p.F, first + kPart);
  for (int64_t i = first; i < last; ++i) from_float(silu(to_float(gate[i])) * to_float(up[i]), out + i);
}

SB_TARGET_CLONES void part_float32(const SiluMulParams& p, int64_t row, int64_t first) {
  gate_part<float>(p, row, first);
}
SB_TARGET_CLONES void part_bfloat16(const SiluMulParams& p, int64_t row, int64_t first) {
  gate_part<BFloat16>(p, row, first);
}
SB_TARGET_CLONES void part_float16(const SiluMulParams& p, int64_t row, int64_t first) {
  gate_part<Float16>(p, row, first);
}

}  // namespace

void silu_mul(const SiluMulParams& p) {
  const auto part = p.dtype == DType::kFloat32    ? part_float32
                    : p.dtype == DType::kBFloat16 ? part_bfloat16
                                                  : part_float16;
  const int64_t parts = (p.F + kPart - 1) / kPart;
  parallel_for(p.rows * parts, static_cast<double>(p.rows * p.F) * 1e-3,
               [&](int64_t i) { part(p, i / parts, i % parts * kPart); });
}

}  // namespace specbranch::cpu
