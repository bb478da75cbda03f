// Matrix product of a few rows with a packed weight: the verification of a chain, a draft step.
//
//   out[r, n] = bias[n] + sum_k x[r, k] * weight[n, k]
//
// Layout: weight packed in panels of 16 outputs, [panels, K, 16], so that one step over k is one vector load; float32,
// or
//         bfloat16 where every weight is exactly one (a checkpoint's usual case): half the bytes, the same result.
// Work:   a task is four panels; rows in blocks of up to 12, whose sums stay in registers while the panels stream by
// once. Bound:  bytes of the weight while rows are few (8 rows cost little more than 1), multiply-adds beyond. Order:
// every sum runs over k from 0 up, with fused multiply-adds, whatever the number of rows or threads: a row's
//         result is bit for bit the same alone and within a batch, which is what makes greedy verification exact.
#include <algorithm>
#include <vector>

#include "common/element.h"
#include "common/lanes.h"
#include "common/parallel.h"
#include "ops.h"

namespace specbranch::cpu {
namespace {

constexpr int kPanel = 16, kTask = 4;
typedef float Vec16 __attribute__((vector_size(64)));
typedef uint32_t Bits16 __attribute__((vector_size(64)));
typedef uint16_t Half16 __attribute__((vector_size(32)));
typedef float LooseVec16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t LooseHalf16 __attribute__((vector_size(32), aligned(2), may_alias));

SB_INLINE Vec16 load_weights(const float* source) { return *reinterpret_cast<const LooseVec16*>(source); }

SB_INLINE Vec16 load_weights(const BFloat16* source) {
  const Half16 half = *reinterpret_cast<const LooseHalf16*>(source);
  const Bits16 bits = __builtin_convertvector(half, Bits16) << 16;
  return (Vec16)bits;  // a vector cast keeps the bits
}

// Sums of one row and one panel, with bias, in the output's type; the last panel may be a part.
template <typename T>
SB_INLINE void store(const LinearParams& p, const Vec16& sums, int64_t row, int64_t panel) {
  const int64_t first = panel * kPanel, count = std::min<int64_t>(kPanel, p.N - first);
  T* out = static_cast<T*>(p.out) + row * p.N + first;
  const T* bias = p.bias == nullptr ? nullptr : static_cast<const T*>(p.bias) + first;
  for (int64_t i = 0; i < count; ++i) from_float(bias == nullptr ? sums[i] : sums[i] + to_float(bias[i]), out + i);
}

// kRows rows times kPanels panels.
template <typename T, typename W, int kRows, int kPanels>
SB_INLINE void multiply_block(const LinearParams& p, const float* x, int64_t row, int64_t panel) {
  const W* weight = static_cast<const W*>(p.weight) + panel * p.K * kPanel;
  Vec16 sums[kRows][kPanels] = {};
  for (int64_t k = 0; k < p.K; ++k) {
    Vec16 weights[kPanels];
    for (int j = 0; j < kPanels; ++j) weights[j] = load_weights(weight + (j * p.K + k) * kPanel);
    for (int r = 0; r < kRows; ++r) {
      const float value = x[(row + r) * p.K + k];
      for (int j = 0; j < kPanels; ++j) sums[r][j] += value * weights[j];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kPanels; ++j) store<T>(p, sums[r][j], row + r, panel + j);
  }
}

template <typename T, typename W, int kRows>
SB_INLINE void multiply_rows(const LinearParams& p, const float* x, int64_t row, int64_t first, int64_t last) {
  constexpr int kPanels = kRows == 1 ? 4 : kRows <= 6 ? 2 : 1;
  int64_t panel = first;
  for (; panel + kPanels <= last; panel += kPanels) multiply_block<T, W, kRows, kPanels>(p, x, row, panel);
  for (; panel < last; ++panel) multiply_block<T, W, kRows, 1>(p, x, row, panel);
}

template <typename T, typename W>
SB_INLINE void multiply(const LinearParams& p, const float* x, int64_t first, int64_t last) {
  int64_t row = 0;
  for (; p.rows - row > 12; row += 8) multiply_rows<T, W, 8>(p, x, row, first, last);
  switch (p.rows - row) {
    case 1:
      return multiply_rows<T, W, 1>(p, x, row, first, last);
    case 2:
      return multiply_rows<T, W, 2>(p, x, row, first, last);
    case 3:
      return multiply_rows<T, W, 3>(p, x, row, first, last);
    case 4:
      return multiply_rows<T, W, 4>(p, x, row, first, last);
    case 5:
      return multiply_rows<T, W, 5>(p, x, row, first, last);
    case 6:
      return multiply_rows<T, W, 6>(p, x, row, first, last);
    case 7:
      return multiply_rows<T, W, 7>(p, x, row, first, last);
    case 8:
      return multiply_rows<T, W, 8>(p, x, row, first, last);
    case 9:
      return multiply_rows<T, W, 9>(p, x, row, first, last);
    case 10:
      return multiply_rows<T, W, 10>(p, x, row, first, last);
    case 11:
      return multiply_rows<T, W, 11>(p, x, row, first, last);
    case 12:
      return multiply_rows<T, W, 12>(p, x, row, first, last);
    default:
      return;
  }
}

using Task = void (*)(const LinearParams&, const float*, int64_t, int64_t);

#define SB_LINEAR_TASK(name, T, W)                                                                 \
  SB_TARGET_CLONES void name(const LinearParams& p, const float* x, int64_t first, int64_t last) { \
    multiply<T, W>(p, x, first, last);                                                             \
  }
SB_LINEAR_TASK(float32_float32, float, float)
SB_LINEAR_TASK(float32_bfloat16, float, BFloat16)
SB_LINEAR_TASK(bfloat16_float32, BFloat16, float)
SB_LINEAR_TASK(bfloat16_bfloat16, BFloat16, BFloat16)
SB_LINEAR_TASK(float16_float32, Float16, float)
SB_LINEAR_TASK(float16_bfloat16, Float16, BFloat16)
#undef SB_LINEAR_TASK

Task task_for(DType dtype, DType weight_dtype) {
  const bool narrow = weight_dtype == DType::kBFloat16;
  if (dtype == DType::kFloat32) return narrow ? float32_bfloat16 : float32_float32;
  if (dtype == DType::kBFloat16) return narrow ? bfloat16_bfloat16 : bfloat16_float32;
  return narrow ? float16_bfloat16 : float16_float32;
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
