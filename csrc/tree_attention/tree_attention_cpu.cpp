// Softmax attention of N tree nodes over one layer of the slot cache.
//
//   out[b, i, h] = sum_s p_s v_s,  p = softmax_s(scale * q[b, i, h] . k_s)  over the slots s that node i sees:
//   s < prefix_length[b], and prefix_length[b] + j where bit j of ancestor_bits[b, i] is set (causal: j <= i).
//
// Layout: q, out [B, N, Hq, D]; cache [2, B, Hkv, S, D] strided, last dimension contiguous.
// Work:   a task is (row b, key-value head, 64 query rows); a query row is (node, query head of the group), so that all
//         of them share one block of 128 keys and values, converted to float32 once where need be. Tasks go to threads.
// Bound:  by multiply-adds for N > 4 or so, else by the bytes of the prefix. No split over the prefix: a single row
// with
//         one key-value head runs on one thread.
// Order:  online softmax over blocks of 128 slots; a dot product is summed in 8 lanes (element d in lane d % 8), lanes
//         pairwise; values are added slot by slot. The order depends on nothing but the slot numbers.
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
constexpr int kWidth = 8;        // floats of a vector

// Eight floats, not necessarily aligned.
typedef float Vec __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));

// Thread-local, grown once: no allocation in the steady state.
struct Scratch {
  std::vector<float> queries, sums, keys, values;
  float max[kRows], total[kRows], scores[2][kBlock];
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

// The vectors' sums over their lanes, in one vector: lane k is the sum of v[k].
SB_INLINE Vec add_lanes_of_8(const Vec* v) {
  Vec pair[4], quad[2];
  for (int i = 0; i < 4; ++i) {
    pair[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 8, 2, 10, 4, 12, 6, 14) +
              __builtin_shufflevector(v[2 * i], v[2 * i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  for (int i = 0; i < 2; ++i) {
    quad[i] = __builtin_shufflevector(pair[2 * i], pair[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
              __builtin_shufflevector(pair[2 * i], pair[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  return __builtin_shufflevector(quad[0], quad[1], 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(quad[0], quad[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

// Dot products of a query with `count` keys, `stride` floats apart; the keys after the last are not read.
SB_INLINE void dot_products(const float* query, const float* keys, int64_t stride, int64_t count, int64_t width,
                            float* scores) {
  for (int64_t first = 0; first < count; first += kWidth) {
    const float* key[kWidth];
    for (int64_t i = 0; i < kWidth; ++i) key[i] = keys + std::min(first + i, count - 1) * stride;
    Vec sums[kWidth] = {};
    for (int64_t d = 0; d < width; d += kWidth) {
      const Vec q = *reinterpret_cast<const Vec*>(query + d);
      for (int i = 0; i < kWidth; ++i) sums[i] += q * *reinterpret_cast<const Vec*>(key[i] + d);
    }
    *reinterpret_cast<Vec*>(scores + first) = add_lanes_of_8(sums);
  }
}

// sums = sums * decay + sum_s weight[s] * value[s], four vectors of the head at a time. Slots of weight 0 are not read:
// they may never have been written.
template <int kVectors>
SB_INLINE void add_values(const float* weights, const float* values, int64_t stride, int64_t count, float decay,
                          float* sums) {
  Vec total[kVectors];
  for (int i = 0; i < kVectors; ++i) total[i] = *reinterpret_cast<const Vec*>(sums + i * kWidth) * decay;
  for (int64_t s = 0; s < count; ++s) {
    if (weights[s] == 0.0f) continue;
    for (int i = 0; i < kVectors; ++i) {
      total[i] += weights[s] * *reinterpret_cast<const Vec*>(values + s * stride + i * kWidth);
    }
  }
  for (int i = 0; i < kVectors; ++i) *reinterpret_cast<Vec*>(sums + i * kWidth) = total[i];
}

// The same for two rows at once, which share the values' loads and do not wait for each other's sums; each row's sums
// are those of add_values, bit for bit.
template <int kVectors>
SB_INLINE void add_values_of_two(const float* const* weights, const float* values, int64_t stride, int64_t count,
                                 const float* decay, float* const* sums) {
  Vec total[2][kVectors];
  for (int r = 0; r < 2; ++r) {
    for (int i = 0; i < kVectors; ++i) total[r][i] = *reinterpret_cast<const Vec*>(sums[r] + i * kWidth) * decay[r];
  }
  for (int64_t s = 0; s < count; ++s) {
    if (weights[0][s] == 0.0f && weights[1][s] == 0.0f) continue;
    Vec value[kVectors];
    for (int i = 0; i < kVectors; ++i) value[i] = *reinterpret_cast<const Vec*>(values + s * stride + i * kWidth);
    for (int r = 0; r < 2; ++r) {
      if (weights[r][s] == 0.0f) continue;
      for (int i = 0; i < kVectors; ++i) total[r][i] += weights[r][s] * value[i];
    }
  }
  for (int r = 0; r < 2; ++r) {
    for (int i = 0; i < kVectors; ++i) *reinterpret_cast<Vec*>(sums[r] + i * kWidth) = total[r][i];
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

// Scores become weights exp(score - max); returns their sum. NaN stays NaN.
SB_INLINE float weigh(float* scores, int64_t count, float max) {
  float lanes[kLanes] = {};
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  for (int64_t s = count; s < padded; ++s) scores[s] = -kInfinity;
  for (int64_t s = 0; s < padded; s += kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      const float difference = scores[s + i] - max;
      const float weight = exp_nonpositive(difference);
      scores[s + i] = difference == difference ? weight : difference;
      lanes[i] += scores[s + i];
    }
  }
  return add_lanes(lanes);
}

SB_INLINE float max_of(const float* scores, int64_t count) {
  float lanes[kLanes];
  for (float& lane : lanes) lane = -kInfinity;
  int64_t s = 0;
  for (; s + kLanes <= count; s += kLanes) {
    for (int i = 0; i < kLanes; ++i) lanes[i] = scores[s + i] > lanes[i] ? scores[s + i] : lanes[i];
  }
  float max = -kInfinity;
  for (; s < count; ++s) max = scores[s] > max ? scores[s] : max;
  for (const float lane : lanes) max = lane > max ? lane : max;
  return max;
}

// Weights of one query row over one block of slots, from its scores; returns the decay of what the row has summed
// before.
SB_INLINE float weigh_block(const Task& task, int64_t row, int64_t start, int64_t count, const float* keys,
                            int64_t stride, float* scores) {
  Scratch& scratch = task.scratch;
  dot_products(scratch.queries.data() + row * task.width, keys, stride, count, task.width, scores);
  mask_scores(task, row, start, count, scores);
  const float max = std::max(scratch.max[row], max_of(scores, count));
  // A row of NaN scores has no maximum; weights against 0 keep the NaN.
  const float base = max == -kInfinity ? 0.0f : max;
  const float decay = exp_nonpositive(scratch.max[row] - base);
  scratch.total[row] = scratch.total[row] * decay + weigh(scores, count, base);
  scratch.max[row] = max;
  return decay;
}

SB_INLINE void add_block(const Task& task, const float* weights, const float* values, int64_t stride, int64_t count,
                         float decay, float* sums) {
  int64_t d = 0;
  for (; d + 4 * kWidth <= task.width; d += 4 * kWidth) {
    add_values<4>(weights, values + d, stride, count, decay, sums + d);
  }
  for (; d < task.width; d += kWidth) add_values<1>(weights, values + d, stride, count, decay, sums + d);
}

// Two query rows, one behind the other, meet one block of slots; what only one of them sees comes last.
SB_INLINE void attend_two(const Task& task, int64_t row, int64_t start, const int64_t* count, const float* keys,
                          const float* values, int64_t stride) {
  const float* weights[2];
  float* sums[2];
  float decay[2];
  for (int r = 0; r < 2; ++r) {
    float* scores = task.scratch.scores[r];
    decay[r] = weigh_block(task, row + r, start, count[r], keys, stride, scores);
    weights[r] = scores;
    sums[r] = task.scratch.sums.data() + (row + r) * task.width;
  }
  const int64_t both = std::min(count[0], count[1]);
  int64_t d = 0;
  for (; d + 4 * kWidth <= task.width; d += 4 * kWidth) {
    float* const at[2] = {sums[0] + d, sums[1] + d};
    add_values_of_two<4>(weights, values + d, stride, both, decay, at);
  }
  for (; d < task.width; d += kWidth) {
    float* const at[2] = {sums[0] + d, sums[1] + d};
    add_values_of_two<1>(weights, values + d, stride, both, decay, at);
  }
  for (int r = 0; r < 2; ++r) {
    if (count[r] == both) continue;
    add_block(task, weights[r] + both, values + both * stride, stride, count[r] - both, 1.0f, sums[r]);
  }
}

SB_INLINE void attend_one(const Task& task, int64_t row, int64_t start, int64_t count, const float* keys,
                          const float* values, int64_t stride) {
  float* scores = task.scratch.scores[0];
  const float decay = weigh_block(task, row, start, count, keys, stride, scores);
  add_block(task, scores, values, stride, count, decay, task.scratch.sums.data() + row * task.width);
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
  if (scratch.keys.size() < block) scratch.keys.resize(block), scratch.values.resize(block);
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
    for (int64_t row = 0; row < task.num_rows; ++row) {
      const int64_t visible[2] = {
          std::min(count, prefix + tree_end(task, row) - start),
          row + 1 < task.num_rows ? std::min(count, prefix + tree_end(task, row + 1) - start) : 0};
      if (visible[0] > 0 && visible[1] > 0) {
        attend_two(task, row++, start, visible, key_block, value_block, stride);
      } else if (visible[0] > 0) {
        attend_one(task, row, start, visible[0], key_block, value_block, stride);
      }
    }
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
