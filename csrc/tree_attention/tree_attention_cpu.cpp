// Softmax attention of N tree nodes over one layer of the slot cache.
//
//   out[b, i, h] = sum_s p_s v_s,  p = softmax_s(scale * q[b, i, h] . k_s)  over the slots s that node i sees:
//   s < prefix_length[b], and prefix_length[b] + j where bit j of ancestor_bits[b, i] is set (causal: j <= i).
//
// Layout: q, out [B, N, Hq, D]; cache [2, B, Hkv, S, D] strided, last dimension contiguous.
// Work:   a task is (row b, key-value head, 64 query rows); a query row is (node, query head of the group), so that all
//         of them share one block of 128 keys and values. The keys are transposed once a block, so that a vector holds
//         one element of 16 keys and no dot product needs a sum over lanes; rows go four at a time and share every
//         load.
// Bound:  by multiply-adds. No split over the prefix: one key-value head runs on one thread.
// Order:  online softmax over blocks of 128 slots (by slot number); a dot product is summed over d from 0 up, the
// weights
//         of a block in 16 lanes (slot s in lane s % 16) and pairwise, values slot by slot. A row's bits depend on
//         nothing but the slot numbers: not on the other rows, not on the threads.
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/element.h"
#include "common/fast_math.h"
#include "common/lanes.h"
#include "common/parallel.h"
#include "ops.h"

namespace specbranch::cpu {
namespace {

constexpr int64_t kBlock = 128;  // slots
constexpr int64_t kRows = 64;    // query rows of a task
constexpr int kWidth = 16;       // floats of a vector
constexpr int kShared = 4;       // query rows that share loads

// Not necessarily aligned.
typedef float Vec __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));
typedef float Vec8 __attribute__((vector_size(32), aligned(4), may_alias));

// Thread-local, grown once: no allocation in the steady state.
struct Scratch {
  std::vector<float> queries, sums, keys, values, transposed;
  float max[kRows], total[kRows], decay[kShared];
  alignas(64) float scores[kShared][kBlock];
};

struct Task {
  const TreeAttentionParams& p;
  int64_t b, kv_head, first_row, num_rows;
  int64_t width;  // D rounded up to whole vectors
  Scratch& scratch;

  int64_t group() const { return p.Hq / p.Hkv; }
  int64_t node(int64_t row) const { return (first_row + row) / group(); }
  int64_t head(int64_t row) const { return kv_head * group() + (first_row + row) % group(); }
  // Element of q and out where the row begins.
  int64_t offset(int64_t row) const { return ((b * p.N + node(row)) * p.Hq + head(row)) * p.D; }
};

// Eight elements of each of eight keys, to eight rows of kBlock columns.
SB_INLINE void transpose_8x8(const float* const* key, float* out) {
  Vec8 in[8], pairs[8], quads[8];
  for (int i = 0; i < 8; ++i) in[i] = *reinterpret_cast<const Vec8*>(key[i]);
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = __builtin_shufflevector(in[2 * i], in[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[2 * i + 1] = __builtin_shufflevector(in[2 * i], in[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 2; ++i) {
      const Vec8 low = pairs[4 * half + i], high = pairs[4 * half + 2 + i];
      quads[4 * half + 2 * i] = __builtin_shufflevector(low, high, 0, 1, 8, 9, 4, 5, 12, 13);
      quads[4 * half + 2 * i + 1] = __builtin_shufflevector(low, high, 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    *reinterpret_cast<Vec8*>(out + i * kBlock) =
        __builtin_shufflevector(quads[i], quads[4 + i], 0, 1, 2, 3, 8, 9, 10, 11);
    *reinterpret_cast<Vec8*>(out + (4 + i) * kBlock) =
        __builtin_shufflevector(quads[i], quads[4 + i], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// Keys [count][width] to [width][kBlock]. Columns up to the next multiple of 16 repeat the last key.
SB_INLINE void transpose(const float* keys, int64_t stride, int64_t count, int64_t width, float* out) {
  const int64_t columns = (count + kWidth - 1) / kWidth * kWidth;
  for (int64_t first = 0; first < columns; first += 8) {
    const float* key[8];
    for (int64_t i = 0; i < 8; ++i) key[i] = keys + std::min(first + i, count - 1) * stride;
    for (int64_t d = 0; d < width; d += 8) {
      transpose_8x8(key, out + d * kBlock + first);
      for (int i = 0; i < 8; ++i) key[i] += 8;
    }
  }
}

// Scores of kNum queries, [kNum][width], with kVectors * 16 keys.
template <int kNum, int kVectors>
SB_INLINE void dot_products(const float* queries, const float* transposed, int64_t width, float* scores) {
  Vec sums[kNum][kVectors] = {};
  for (int64_t d = 0; d < width; ++d) {
    Vec key[kVectors];
    for (int v = 0; v < kVectors; ++v) key[v] = *reinterpret_cast<const Vec*>(transposed + d * kBlock + v * kWidth);
    for (int r = 0; r < kNum; ++r) {
      const float query = queries[r * width + d];
      for (int v = 0; v < kVectors; ++v) sums[r][v] += query * key[v];
    }
  }
  for (int r = 0; r < kNum; ++r) {
    for (int v = 0; v < kVectors; ++v) *reinterpret_cast<Vec*>(scores + r * kBlock + v * kWidth) = sums[r][v];
  }
}

// sums[r] = sums[r] * decay[r] + sum_s weight[r][s] * value[s], kVectors vectors of the head, over slots of the prefix.
template <int kNum, int kVectors>
SB_INLINE void add_values(const float* weights, const float* values, int64_t stride, int64_t count, const float* decay,
                          float* sums, int64_t width) {
  Vec total[kNum][kVectors];
  for (int r = 0; r < kNum; ++r) {
    for (int i = 0; i < kVectors; ++i) {
      total[r][i] = *reinterpret_cast<const Vec*>(sums + r * width + i * kWidth) * decay[r];
    }
  }
  for (int64_t s = 0; s < count; ++s) {
    Vec value[kVectors];
    for (int i = 0; i < kVectors; ++i) value[i] = *reinterpret_cast<const Vec*>(values + s * stride + i * kWidth);
    for (int r = 0; r < kNum; ++r) {
      for (int i = 0; i < kVectors; ++i) total[r][i] += weights[r * kBlock + s] * value[i];
    }
  }
  for (int r = 0; r < kNum; ++r) {
    for (int i = 0; i < kVectors; ++i) *reinterpret_cast<Vec*>(sums + r * width + i * kWidth) = total[r][i];
  }
}

// The same for one row and slots behind the prefix. Those of weight 0 are not read: they may never have been written.
SB_INLINE void add_tree_values(const float* weights, const float* values, int64_t stride, int64_t first, int64_t last,
                               float* sums, int64_t width) {
  for (int64_t s = first; s < last; ++s) {
    if (weights[s] == 0.0f) continue;
    for (int64_t d = 0; d < width; d += kWidth) {
      *reinterpret_cast<Vec*>(sums + d) += weights[s] * *reinterpret_cast<const Vec*>(values + s * stride + d);
    }
  }
}

// One past the last tree slot that a row's node sees.
SB_INLINE int64_t tree_end(const Task& task, int64_t row) {
  if (task.p.ancestor_bits == nullptr) return task.node(row) + 1;
  const uint32_t* bits = task.p.ancestor_bits + (task.b * task.p.N + task.node(row)) * task.p.W;
  int64_t word = task.p.W - 1;
  while (word >= 0 && bits[word] == 0) --word;
  return word < 0 ? 0 : 32 * word + 32 - __builtin_clz(bits[word]);
}

// Scores of slots that the node does not see become -inf.
SB_INLINE void mask_scores(const Task& task, int64_t row, int64_t start, int64_t count, float* scores) {
  const int64_t prefix = task.p.prefix_length[task.b];
  if (task.p.ancestor_bits == nullptr || start + count <= prefix) return;
  const uint32_t* bits = task.p.ancestor_bits + (task.b * task.p.N + task.node(row)) * task.p.W;
  for (int64_t s = std::max<int64_t>(0, prefix - start); s < count; ++s) {
    const int64_t j = start + s - prefix;
    if ((bits[j / 32] >> (j % 32) & 1u) == 0) scores[s] = -kInfinity;
  }
}

// Scores become weights exp(score - max); returns their sum. NaN stays NaN. `count` is a multiple of 16.
SB_INLINE float weigh(float* scores, int64_t count, float max) {
  for (int64_t s = 0; s < count; ++s) {
    const float difference = scores[s] - max;
    const float weight = exp_nonpositive(difference);
    scores[s] = difference == difference ? weight : difference;
  }
  Vec lanes = {};
  for (int64_t s = 0; s < count; s += kWidth) lanes += *reinterpret_cast<const Vec*>(scores + s);
  return add_lanes(reinterpret_cast<float*>(&lanes));
}

SB_INLINE float max_of(const float* scores, int64_t count) {
  Vec lanes = Vec{} - kInfinity;
  for (int64_t s = 0; s < count; s += kWidth) {
    const Vec score = *reinterpret_cast<const Vec*>(scores + s);
    lanes = score > lanes ? score : lanes;
  }
  float max = -kInfinity;
  for (int i = 0; i < kWidth; ++i) max = lanes[i] > max ? lanes[i] : max;
  return max;
}

// A block of slots as the rows meet it.
struct Block {
  int64_t start, count, in_prefix;  // slots, how many of them, how many of those every row sees
  const float* transposed;          // keys
  const float* values;
  int64_t stride;  // of values
};

// Weights of a query row over the block, from its scores; scratch.decay: of what the row has summed before.
SB_INLINE void weigh_block(const Task& task, int64_t row, const Block& block, int64_t visible, int slot) {
  Scratch& scratch = task.scratch;
  float* scores = scratch.scores[slot];
  mask_scores(task, row, block.start, visible, scores);
  const int64_t padded = (visible + kWidth - 1) / kWidth * kWidth;
  std::fill(scores + visible, scores + padded, -kInfinity);
  const float max = std::max(scratch.max[row], max_of(scores, padded));
  // A row of NaN scores has no maximum; weights against 0 keep the NaN.
  const float base = max == -kInfinity ? 0.0f : max;
  const float decay = exp_nonpositive(scratch.max[row] - base);
  scratch.total[row] = scratch.total[row] * decay + weigh(scores, padded, base);
  scratch.max[row] = max;
  scratch.decay[slot] = decay;
}

template <int kNum>
SB_INLINE void attend_rows(const Task& task, int64_t row, const Block& block) {
  Scratch& scratch = task.scratch;
  const int64_t width = task.width, prefix = task.p.prefix_length[task.b];
  const float* queries = scratch.queries.data() + row * width;
  int64_t s = 0;
  for (; s + 2 * kWidth <= block.count; s += 2 * kWidth) {
    dot_products<kNum, 2>(queries, block.transposed + s, width, scratch.scores[0] + s);
  }
  for (; s < block.count; s += kWidth) {
    dot_products<kNum, 1>(queries, block.transposed + s, width, scratch.scores[0] + s);
  }
  int64_t visible[kNum];
  for (int r = 0; r < kNum; ++r) {
    visible[r] = std::max<int64_t>(0, std::min(block.count, prefix + tree_end(task, row + r) - block.start));
    weigh_block(task, row + r, block, visible[r], r);
  }
  float* sums = scratch.sums.data() + row * width;
  int64_t d = 0;
  for (; d + 2 * kWidth <= width; d += 2 * kWidth) {
    add_values<kNum, 2>(scratch.scores[0], block.values + d, block.stride, block.in_prefix, scratch.decay, sums + d,
                        width);
  }
  for (; d < width; d += kWidth) {
    add_values<kNum, 1>(scratch.scores[0], block.values + d, block.stride, block.in_prefix, scratch.decay, sums + d,
                        width);
  }
  for (int r = 0; r < kNum; ++r) {
    add_tree_values(scratch.scores[r], block.values, block.stride, block.in_prefix, visible[r], sums + r * width,
                    width);
  }
}

SB_INLINE void attend_block(const Task& task, const Block& block) {
  int64_t row = 0;
  for (; row + kShared <= task.num_rows; row += kShared) attend_rows<kShared>(task, row, block);
  switch (task.num_rows - row) {
    case 3:
      return attend_rows<3>(task, row, block);
    case 2:
      return attend_rows<2>(task, row, block);
    case 1:
      return attend_rows<1>(task, row, block);
    default:
      return;
  }
}

// A block of keys or values as float32, padded with zeros to whole vectors; in place where it is so already.
template <typename T>
SB_INLINE const float* load_block(const T* source, int64_t stride, int64_t count, int64_t D, int64_t width,
                                  std::vector<float>& buffer) {
  for (int64_t s = 0; s < count; ++s) {
    float* out = buffer.data() + s * width;
    for (int64_t d = 0; d < D; ++d) out[d] = to_float(source[s * stride + d]);
    for (int64_t d = D; d < width; ++d) out[d] = 0.0f;
  }
  return buffer.data();
}

template <typename T>
SB_INLINE void begin(const Task& task) {
  Scratch& scratch = task.scratch;
  const TreeAttentionParams& p = task.p;
  const size_t size = task.num_rows * task.width;
  if (scratch.queries.size() < size) scratch.queries.resize(size), scratch.sums.resize(size);
  const size_t block = kBlock * task.width;
  if (scratch.keys.size() < block) {
    for (std::vector<float>* buffer : {&scratch.keys, &scratch.values, &scratch.transposed}) buffer->resize(block);
  }
  std::fill_n(scratch.sums.begin(), size, 0.0f);
  for (int64_t row = 0; row < task.num_rows; ++row) {
    const T* q = static_cast<const T*>(p.q) + task.offset(row);
    float* query = scratch.queries.data() + row * task.width;
    for (int64_t d = 0; d < p.D; ++d) query[d] = to_float(q[d]) * p.scale;
    for (int64_t d = p.D; d < task.width; ++d) query[d] = 0.0f;
    scratch.max[row] = -kInfinity;
    scratch.total[row] = 0.0f;
  }
}

template <typename T>
SB_INLINE void finish(const Task& task) {
  for (int64_t row = 0; row < task.num_rows; ++row) {
    const float total = task.scratch.total[row];
    const float factor = total == 0.0f ? 0.0f : 1.0f / total;
    T* out = static_cast<T*>(task.p.out) + task.offset(row);
    const float* sums = task.scratch.sums.data() + row * task.width;
    for (int64_t d = 0; d < task.p.D; ++d) from_float(sums[d] * factor, out + d);
  }
}

template <typename T>
SB_INLINE void attend(const Task& task) {
  const TreeAttentionParams& p = task.p;
  const CacheLayer& cache = p.cache;
  const T* keys = static_cast<const T*>(cache.data) + task.b * cache.batch_stride + task.kv_head * cache.head_stride;
  const bool in_place = sizeof(T) == 4 && p.D == task.width;
  begin<T>(task);
  const int64_t prefix = p.prefix_length[task.b];
  int64_t end = prefix;
  for (int64_t row = 0; row < task.num_rows; ++row) end = std::max(end, prefix + tree_end(task, row));
  for (int64_t start = 0; start < end; start += kBlock) {
    const int64_t count = std::min(kBlock, end - start);
    const T *key = keys + start * cache.slot_stride, *value = key + cache.kv_stride;
    const float *key_block = reinterpret_cast<const float*>(key), *value_block = reinterpret_cast<const float*>(value);
    if (!in_place) {
      key_block = load_block(key, cache.slot_stride, count, p.D, task.width, task.scratch.keys);
      value_block = load_block(value, cache.slot_stride, count, p.D, task.width, task.scratch.values);
    }
    const int64_t stride = in_place ? cache.slot_stride : task.width;
    float* transposed = task.scratch.transposed.data();
    transpose(key_block, stride, count, task.width, transposed);
    const int64_t in_prefix = std::max<int64_t>(0, std::min(count, prefix - start));
    attend_block(task, {start, count, in_prefix, transposed, value_block, stride});
  }
  finish<T>(task);
}

SB_TARGET_CLONES void attend_float32(const Task& task) { attend<float>(task); }
SB_TARGET_CLONES void attend_bfloat16(const Task& task) { attend<BFloat16>(task); }
SB_TARGET_CLONES void attend_float16(const Task& task) { attend<Float16>(task); }

double estimated_microseconds(const TreeAttentionParams& p) {
  double slots = 0;
  for (int64_t b = 0; b < p.B; ++b) slots += static_cast<double>(p.prefix_length[b] + p.N);
  return slots * static_cast<double>(p.N * p.Hq * p.D) * 1e-4;
}

}  // namespace

void tree_attention(const TreeAttentionParams& p) {
  const auto attend = p.dtype == DType::kFloat32    ? attend_float32
                      : p.dtype == DType::kBFloat16 ? attend_bfloat16
                                                    : attend_float16;
  const int64_t rows = p.N * (p.Hq / p.Hkv), chunks = (rows + kRows - 1) / kRows;
  const int64_t width = (p.D + kWidth - 1) / kWidth * kWidth;
  parallel_for(p.B * p.Hkv * chunks, estimated_microseconds(p), [&](int64_t i) {
    thread_local Scratch scratch;
    const int64_t first_row = i % chunks * kRows;
    attend({p, i / chunks / p.Hkv, i / chunks % p.Hkv, first_row, std::min(kRows, rows - first_row), width, scratch});
  });
}

}  // namespace specbranch::cpu
