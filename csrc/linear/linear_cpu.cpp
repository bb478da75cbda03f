// Matrix product of a few rows with a packed weight: the verification of a chain, a draft step.
//
//   out[r, n] = bias[n] + sum_k x[r, k] * weight[n, k]
//
// Layout: weight packed in panels of 16 outputs, [panels, K, 16], so that one step over k is whole vector loads;
//         float32, or bfloat16 where every weight is exactly one (a checkpoint's usual case): half the bytes, the same
//         result.
// Work:   a task is four panels; rows in blocks of up to 12 (6 with vectors of 8), whose sums stay in registers while
//         the panels stream by once.
// Bound:  bytes of the weight while rows are few (8 rows cost two to three times what 1 does), multiply-adds beyond.
// Order:  every sum runs over k from 0 up, with fused multiply-adds, whatever the number of rows or threads: a row's
//         result is bit for bit the same alone and within a batch, which is what makes greedy verification exact.
#include <algorithm>
#include <vector>

#include "common/element.h"
#include "common/lanes.h"
#include "common/parallel.h"
#include "common/vectors.h"
#include "ops.h"

namespace specbranch::cpu {
namespace {

constexpr int kPanel = 16, kTask = 4;

template <int kFloats>
SB_INLINE typename Vectors<kFloats>::Float load_weights(const float* source) {
  return *reinterpret_cast<const typename Vectors<kFloats>::Float*>(source);
}

template <int kFloats>
SB_INLINE typename Vectors<kFloats>::Float load_weights(const BFloat16* source) {
  using V = Vectors<kFloats>;
  const auto half = *reinterpret_cast<const typename V::Half*>(source);
  const typename V::Bits bits = __builtin_convertvector(half, typename V::Bits) << 16;
  return (typename V::Float)bits;  // a vector cast keeps the bits
}

// Sums of one row from column `first` on, with bias, in the output's type; the last columns may not exist.
template <int kFloats, typename T>
SB_INLINE void store(const LinearParams& p, const typename Vectors<kFloats>::Float& sums, int64_t row, int64_t first) {
  const int64_t count = std::min<int64_t>(kFloats, p.N - first);
  T* out = static_cast<T*>(p.out) + row * p.N + first;
  const T* bias = p.bias == nullptr ? nullptr : static_cast<const T*>(p.bias) + first;
  for (int64_t i = 0; i < count; ++i) from_float(bias == nullptr ? sums[i] : sums[i] + to_float(bias[i]), out + i);
}

// kRows rows times kPanels panels.
template <int kFloats, typename T, typename W, int kRows, int kPanels>
SB_INLINE void multiply_block(const LinearParams& p, const float* x, int64_t row, int64_t panel) {
  using V = typename Vectors<kFloats>::Float;
  constexpr int kParts = kPanel / kFloats, kVectors = kPanels * kParts;
  const W* weight = static_cast<const W*>(p.weight) + panel * p.K * kPanel;
  V sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < p.K; ++k) {
    V weights[kVectors];
    for (int j = 0; j < kVectors; ++j) {
      weights[j] = load_weights<kFloats>(weight + (j / kParts * p.K + k) * kPanel + j % kParts * kFloats);
    }
    for (int r = 0; r < kRows; ++r) {
      const float value = x[(row + r) * p.K + k];
      for (int j = 0; j < kVectors; ++j) sums[r][j] += value * weights[j];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kVectors; ++j) store<kFloats, T>(p, sums[r][j], row + r, panel * kPanel + j * kFloats);
  }
}

// How many panels a block of `rows` rows has, for its sums and weights to stay in registers; a single row keeps no
// weights.
template <int kFloats>
constexpr int block_panels(int rows) {
  if (rows == 1) return kFloats >= 8 ? 4 : 2;
  int panels = kTask;
  while (panels > 1 && (rows + 1) * panels * (kPanel / kFloats) >= Vectors<kFloats>::kRegisters) panels /= 2;
  return panels;
}

template <int kFloats, typename T, typename W, int kRows, int kPanels = block_panels<kFloats>(kRows)>
SB_INLINE void multiply_rows(const LinearParams& p, const float* x, int64_t row, int64_t panel, int64_t last) {
  for (; panel + kPanels <= last; panel += kPanels) multiply_block<kFloats, T, W, kRows, kPanels>(p, x, row, panel);
  if constexpr (kPanels > 1) multiply_rows<kFloats, T, W, kRows, kPanels / 2>(p, x, row, panel, last);
}

// `count` rows, kRows at most.
template <int kFloats, typename T, typename W, int kRows>
SB_INLINE void multiply_some(const LinearParams& p, const float* x, int64_t row, int64_t count, int64_t first,
                             int64_t last) {
  if (count == kRows) return multiply_rows<kFloats, T, W, kRows>(p, x, row, first, last);
  if constexpr (kRows > 1) multiply_some<kFloats, T, W, kRows - 1>(p, x, row, count, first, last);
}

// All rows, in parts of equal size.
template <int kFloats, typename T, typename W>
SB_INLINE void multiply(const LinearParams& p, const float* x, int64_t first, int64_t last) {
  constexpr int kMost = kFloats == 16 ? 12 : kFloats == 8 ? 6 : 3;
  int64_t row = 0;
  for (int64_t parts = (p.rows + kMost - 1) / kMost; parts > 0; --parts) {
    const int64_t count = (p.rows - row + parts - 1) / parts;
    multiply_some<kFloats, T, W, kMost>(p, x, row, count, first, last);
    row += count;
  }
}

using Task = void (*)(const LinearParams&, const float*, int64_t, int64_t);

#define SB_LINEAR_TASK(name, T, W)                                                                  \
  SB_VECTOR_VERSIONS(void name(const LinearParams& p, const float* x, int64_t first, int64_t last), \
                     (multiply<kFloats, T, W>(p, x, first, last)))
SB_LINEAR_TASK(float32_float32, float, float)
SB_LINEAR_TASK(float32_bfloat16, float, BFloat16)
SB_LINEAR_TASK(bfloat16_float32, BFloat16, float)
SB_LINEAR_TASK(bfloat16_bfloat16, BFloat16, BFloat16)
SB_LINEAR_TASK(float16_float32, Float16, float)
SB_LINEAR_TASK(float16_bfloat16, Float16, BFloat16)
#undef SB_LINEAR_TASK

// A function of several versions is only an address where its type is known.
constexpr Task choose(bool narrow, Task bfloat16, Task float32) { return narrow ? bfloat16 : float32; }

Task task_for(DType dtype, DType weight_dtype) {
  const bool narrow = weight_dtype == DType::kBFloat16;
  if (dtype == DType::kFloat32) return choose(narrow, float32_bfloat16, float32_float32);
  if (dtype == DType::kBFloat16) return choose(narrow, bfloat16_bfloat16, bfloat16_float32);
  return choose(narrow, float16_bfloat16, float16_float32);
}

// The rows as float32: as they are, or converted into `buffer`.
const float* rows_of(const LinearParams& p, std::vector<float>& buffer) {
  if (p.dtype == DType::kFloat32) return static_cast<const float*>(p.x);
  const int64_t count = p.rows * p.K;
  buffer.resize(std::max<size_t>(buffer.size(), count));
  if (p.dtype == DType::kBFloat16) {
    const auto* x = static_cast<const BFloat16*>(p.x);
    for (int64_t i = 0; i < count; ++i) buffer[i] = to_float(x[i]);
  } else {
    const auto* x = static_cast<const Float16*>(p.x);
    for (int64_t i = 0; i < count; ++i) buffer[i] = to_float(x[i]);
  }
  return buffer.data();
}

}  // namespace

void linear(const LinearParams& p) {
  thread_local std::vector<float> buffer;
  const float* x = rows_of(p, buffer);
  const Task task = task_for(p.dtype, p.weight_dtype);
  const int64_t panels = (p.N + kPanel - 1) / kPanel, tasks = (panels + kTask - 1) / kTask;
  parallel_for(tasks, linear_microseconds(p),
               [&](int64_t i) { task(p, x, i * kTask, std::min(panels, (i + 1) * kTask)); });
}

}  // namespace specbranch::cpu
