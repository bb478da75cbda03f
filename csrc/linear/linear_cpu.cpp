// Matrix product of a few rows with a packed weight: the verification of a chain, a draft step.
//
//   out[r, n] = bias[n] + sum_k x[r, k] * weight[n, k]
//
// Layout: weight packed in panels of 64 outputs, [panels, K, 64], so that a panel is one stream of bytes; float32, or
//         bfloat16 where every weight is exactly one (a checkpoint's usual case): half the bytes, the same result. Of
//         32 outputs, number j and number 16 + j are neighbours: as the halves of a word, two bfloat16 become two
//         floats by a shift and a mask, which is what few rows cost beside the multiply-adds. Or int8, outputs in
//         order, a panel's 64 float32 scales behind its weights: a sum is over whole numbers, and scaled once at its
//         end.
// Work:   a task is two panels; rows in blocks of up to 12 (6 with narrower vectors), whose sums stay in registers
// while
//         a panel streams by once or twice.
// Bound:  multiply-adds where the weights are in a cache near enough, their bytes where they come from memory.
// Order:  every sum runs over k from 0 up, with fused multiply-adds, whatever the number of rows or threads: a row's
//         result is bit for bit the same alone and within a batch, which is what makes greedy verification exact.
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "common/element.h"
#include "common/lanes.h"
#include "common/parallel.h"
#include "common/vectors.h"
#include "ops.h"

namespace specbranch::cpu {
namespace {

constexpr int kPanel = 64, kHalf = 16, kTask = 2;

// A unit is the widest run of words of one vector: `kFloats` outputs and those 16 further on.
template <int kFloats>
constexpr int kUnits = kPanel / (2 * kFloats);

// Where a unit's first word is among the outputs of a panel.
template <int kFloats>
constexpr int64_t first_output(int64_t unit) {
  return unit * kFloats / kHalf * 2 * kHalf + unit * kFloats % kHalf;
}

// The weights of a unit for one k: of both halves.
template <int kFloats>
SB_INLINE void load_unit(const float* panel, int64_t unit, typename Vectors<kFloats>::Float* weights) {
  using V = typename Vectors<kFloats>::Float;
  const float* source = panel + first_output<kFloats>(unit);
  weights[0] = *reinterpret_cast<const V*>(source);
  weights[1] = *reinterpret_cast<const V*>(source + kHalf);
}

template <int kFloats>
SB_INLINE void load_unit(const BFloat16* panel, int64_t unit, typename Vectors<kFloats>::Float* weights) {
  using V = Vectors<kFloats>;
  const auto words = *reinterpret_cast<const typename V::Words*>(panel + 2 * kFloats * unit);
  weights[0] = (typename V::Float)(typename V::Bits)(words << 16);  // a vector cast keeps the bits
  weights[1] = (typename V::Float)(typename V::Bits)(words & 0xFFFF0000u);
}

template <int kFloats>
SB_INLINE void load_unit(const int8_t* panel, int64_t unit, typename Vectors<kFloats>::Float* weights) {
  using V = Vectors<kFloats>;
  const auto words = *reinterpret_cast<const typename V::Words*>(panel + 4 * (unit * kFloats % kHalf));
  // gcc widens bytes one by one; shifts of words it does at once.
  const auto upper = unit * kFloats < kHalf ? words << 16 : words;
  const auto low = (typename V::Ints)(upper << 8) >> 24, high = (typename V::Ints)upper >> 24;
  weights[0] = __builtin_convertvector(low, typename V::Float);
  weights[1] = __builtin_convertvector(high, typename V::Float);
}

// Rows of 64 elements from one panel to the next.
template <typename W>
constexpr int64_t panel_stride(int64_t inputs) {
  return inputs + (std::is_same_v<W, int8_t> ? kScaleRows : 0);
}

constexpr int64_t kAhead = 32;  // of the weights that are multiplied, those of this many k further on are fetched

// What a task has summed for a block of rows: of two panels at most.
constexpr int kMostRows = 12;
using Tile = float[kMostRows][kTask * kPanel];

// kRows rows times kCount units of each of kPanels panels, from `unit` of `panel` on, summed for k in [begin, end).
template <int kFloats, typename W, int kRows, int kCount, int kPanels>
SB_INLINE void multiply_block(const LinearParams& p, const float* x, int64_t panel, int64_t unit, int64_t begin,
                              int64_t end, Tile& tile) {
  using V = typename Vectors<kFloats>::Float;
  const W* weight = static_cast<const W*>(p.weight) + panel * panel_stride<W>(p.K) * kPanel;
  const auto at = [&](int r, int j) {
    return reinterpret_cast<V*>(tile[r] + j / kCount * kPanel + first_output<kFloats>(unit + j % kCount));
  };
  V sums[kRows][kPanels * kCount][2] = {};
  if (begin > 0) {
    for (int r = 0; r < kRows; ++r) {
      for (int j = 0; j < kPanels * kCount; ++j) {
        sums[r][j][0] = *at(r, j);
        sums[r][j][1] = at(r, j)[kHalf / kFloats];
      }
    }
  }
  for (int64_t k = begin; k < end; ++k) {
    // One row asks for the next line fast enough for the hardware to see a stream; several do not, least of all in
    // every other line.
    if constexpr (kRows > 1) {
      for (int64_t line = 0; line < kPanel; line += 64 / static_cast<int64_t>(sizeof(W))) {
        __builtin_prefetch(weight + (k + kAhead) * kPanel + line);
      }
    }
    V weights[kPanels * kCount][2];
    for (int j = 0; j < kPanels * kCount; ++j) {
      load_unit<kFloats>(weight + (j / kCount * panel_stride<W>(p.K) + k) * kPanel, unit + j % kCount, weights[j]);
    }
    for (int r = 0; r < kRows; ++r) {
      const float value = x[r * p.K + k];
      for (int j = 0; j < kPanels * kCount; ++j) {
        sums[r][j][0] += value * weights[j][0];
        sums[r][j][1] += value * weights[j][1];
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kPanels * kCount; ++j) {
      *at(r, j) = sums[r][j][0];
      at(r, j)[kHalf / kFloats] = sums[r][j][1];
    }
  }
}

// How many units of a panel `rows` rows take at once, for their sums and the weights to stay in registers.
template <int kFloats>
constexpr int block_units(int rows) {
  int units = kUnits<kFloats>;
  while (units > 1 && (rows + 1) * units * 2 >= Vectors<kFloats>::kRegisters) units /= 2;
  return units;
}

// The tile's first `count` outputs of each row, with bias, in the output's type.
template <typename T>
void store(const LinearParams& p, const Tile& tile, int64_t row, int64_t rows, int64_t first, int64_t count) {
  const T* bias = static_cast<const T*>(p.bias);
  for (int64_t r = 0; r < rows; ++r) {
    T* out = static_cast<T*>(p.out) + (row + r) * p.N + first;
    if (bias == nullptr) {
      for (int64_t i = 0; i < count; ++i) from_float(tile[r][i], out + i);
    } else {
      for (int64_t i = 0; i < count; ++i) from_float(tile[r][i] + to_float(bias[first + i]), out + i);
    }
  }
}

void store_tile(const LinearParams& p, const Tile& tile, int64_t row, int64_t rows, int64_t panel, int64_t panels) {
  const int64_t first = panel * kPanel, count = std::min<int64_t>(panels * kPanel, p.N - first);
  if (p.dtype == DType::kFloat32) return store<float>(p, tile, row, rows, first, count);
  if (p.dtype == DType::kBFloat16) return store<BFloat16>(p, tile, row, rows, first, count);
  store<Float16>(p, tile, row, rows, first, count);
}

// What a sum over int8 weights still lacks: the scale of its output.
template <typename W>
SB_INLINE void scale_tile(const LinearParams& p, int64_t rows, int64_t panel, int64_t panels, Tile& tile) {
  if constexpr (std::is_same_v<W, int8_t>) {
    for (int64_t i = 0; i < panels; ++i) {
      const int8_t* weight = static_cast<const int8_t*>(p.weight) + (panel + i) * panel_stride<W>(p.K) * kPanel;
      float scales[kPanel];
      std::memcpy(scales, weight + p.K * kPanel, sizeof(scales));
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t n = 0; n < kPanel; ++n) tile[r][i * kPanel + n] *= scales[n];
      }
    }
  }
}

template <int kFloats, typename W, int kRows>
SB_INLINE void multiply_rows(const LinearParams& p, const float* x, int64_t row, int64_t panel, int64_t last) {
  constexpr int kCount = block_units<kFloats>(kRows);
  // One row has few sums: two panels at once hide the latency of its multiply-adds.
  constexpr int kPanels = kRows == 1 && kFloats == 16 ? 2 : 1;
  Tile tile;
  x += row * p.K;
  if constexpr (kPanels == 2) {
    for (; panel + 2 <= last; panel += 2) {
      multiply_block<kFloats, W, kRows, kCount, 2>(p, x, panel, 0, 0, p.K, tile);
      scale_tile<W>(p, kRows, panel, 2, tile);
      store_tile(p, tile, row, kRows, panel, 2);
    }
  }
  for (; panel < last; ++panel) {
    // Where a panel takes several passes, they alternate: one that reads half of the lines of the whole panel comes
    // from far away twice. Once at least, as sums over no k are zeros.
    const int64_t step = kCount == kUnits<kFloats> ? p.K : 128;
    int64_t begin = 0;
    do {
      const int64_t end = std::min(begin + step, p.K);
      for (int64_t unit = 0; unit < kUnits<kFloats>; unit += kCount) {
        multiply_block<kFloats, W, kRows, kCount, 1>(p, x, panel, unit, begin, end, tile);
      }
      begin = end;
    } while (begin < p.K);
    scale_tile<W>(p, kRows, panel, 1, tile);
    store_tile(p, tile, row, kRows, panel, 1);
  }
}

// `count` rows, kRows at most.
template <int kFloats, typename W, int kRows>
SB_INLINE void multiply_some(const LinearParams& p, const float* x, int64_t row, int64_t count, int64_t first,
                             int64_t last) {
  if (count == kRows) return multiply_rows<kFloats, W, kRows>(p, x, row, first, last);
  if constexpr (kRows > 1) multiply_some<kFloats, W, kRows - 1>(p, x, row, count, first, last);
}

// All rows, in parts of equal size.
template <int kFloats, typename W>
SB_INLINE void multiply(const LinearParams& p, const float* x, int64_t first, int64_t last) {
  constexpr int kMost = kFloats == 16 ? kMostRows : 6;
  int64_t row = 0;
  for (int64_t parts = (p.rows + kMost - 1) / kMost; parts > 0; --parts) {
    const int64_t count = (p.rows - row + parts - 1) / parts;
    multiply_some<kFloats, W, kMost>(p, x, row, count, first, last);
    row += count;
  }
}

SB_VECTOR_VERSIONS(void multiply_float32(const LinearParams& p, const float* x, int64_t first, int64_t last),
                   (multiply<kFloats, float>(p, x, first, last)))
SB_VECTOR_VERSIONS(void multiply_bfloat16(const LinearParams& p, const float* x, int64_t first, int64_t last),
                   (multiply<kFloats, BFloat16>(p, x, first, last)))
SB_VECTOR_VERSIONS(void multiply_int8(const LinearParams& p, const float* x, int64_t first, int64_t last),
                   (multiply<kFloats, int8_t>(p, x, first, last)))

void multiply_panels(const LinearParams& p, const float* x, int64_t first, int64_t last) {
  if (p.weight_dtype == DType::kInt8) return multiply_int8(p, x, first, last);
  if (p.weight_dtype == DType::kBFloat16) return multiply_bfloat16(p, x, first, last);
  multiply_float32(p, x, first, last);
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
  const int64_t panels = (p.N + kPanel - 1) / kPanel, tasks = (panels + kTask - 1) / kTask;
  parallel_for(tasks, linear_microseconds(p), [&](int64_t i) {
    const int64_t first = i * kTask, last = std::min(panels, first + kTask);
    multiply_panels(p, x, first, last);
  });
}

}  // namespace specbranch::cpu
