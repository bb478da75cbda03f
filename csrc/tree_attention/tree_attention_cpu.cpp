// Softmax attention of N tree nodes over one layer of the slot cache.
//
//   out[b, i, h] = sum_s p_s v_s,  p = softmax_s(scale * q[b, i, h] . k_s)  over the slots s that node i sees:
//   s < prefix_length[b], and prefix_length[b] + j where bit j of ancestor_bits[b, i] is set (causal: j <= i).
//
// Layout: q, out [B, N, Hq, D]; cache [2, B, Hkv, S, D] strided, last dimension contiguous.
// Work:   a task is (row b, key-value head, 64 query rows); a query row is (node, query head of the group), so that all
//         of them share one block of 128 keys and values. The keys are transposed once a block, so that a vector holds
//         one element of many keys and no dot product needs a sum over lanes; up to 8 rows share every load.
// Bound:  by multiply-adds; for one or two rows, by transposing. No split over the prefix: one key-value head runs on
//         one thread.
// Order:  online softmax over blocks of 128 slots (by slot number); a dot product is summed over d from 0 up, the
//         weights of a block in 16 lanes (slot s in lane s % 16) and pairwise, values over the even and the odd slots
//         from 0 up, and the two sums at the end. A row's bits depend on nothing but the slot numbers: not on the other
//         rows, not on the threads.
#include <algorithm>
#include <vector>

#include "common/element.h"
#include "common/fast_math.h"
#include "common/lanes.h"
#include "common/parallel.h"
#include "common/vectors.h"
#include "ops.h"
#include "tree_attention/transpose.h"

namespace specbranch::cpu {
namespace {

constexpr int64_t kBlock = 128;    // slots
constexpr int64_t kTaskRows = 64;  // query rows of a task
constexpr int kMaxShared = 8;      // query rows that share loads, at most

// Thread-local, grown once: no allocation in the steady state. sums: even slots of all rows, then odd ones.
struct Scratch {
  std::vector<float> queries, sums, keys, values, transposed;
  float max[kTaskRows], total[kTaskRows], decay[kMaxShared];
  alignas(64) float scores[kMaxShared][kBlock];
};

struct Task {
  const TreeAttentionParams& p;
  int64_t b, kv_head, first_row, num_rows;
  int64_t width;  // D rounded up to whole vectors of any width
  Scratch& scratch;

  int64_t group() const { return p.Hq / p.Hkv; }
  int64_t node(int64_t row) const { return (first_row + row) / group(); }
  int64_t head(int64_t row) const { return kv_head * group() + (first_row + row) % group(); }
  // Element of q and out where the row begins.
  int64_t offset(int64_t row) const { return ((b * p.N + node(row)) * p.Hq + head(row)) * p.D; }
  const uint32_t* bits(int64_t row) const { return p.ancestor_bits + (b * p.N + node(row)) * p.W; }
  bool sees(int64_t row, int64_t j) const {
    return p.ancestor_bits == nullptr ? j <= node(row) : (bits(row)[j / 32] >> (j % 32) & 1u) != 0;
  }
};

// A block of slots.
struct Block {
  int64_t start, count;
  const float *keys, *values;
  int64_t stride;  // of both
};

// How many vectors of keys or values `rows` query rows can share within the registers.
template <int kFloats>
constexpr int shared_vectors(int rows) {
  int vectors = kFloats == 16 ? 8 : 4;
  while (vectors > 1 && (rows + 1) * vectors >= Vectors<kFloats>::kRegisters) vectors /= 2;
  return vectors;
}

// Scores of kRows queries, [kRows][width], with kVectors vectors of keys.
template <int kFloats, int kRows, int kVectors>
SB_INLINE void dot_products(const float* queries, const float* transposed, int64_t width, float* scores) {
  using V = typename Vectors<kFloats>::Float;
  V sums[kRows][kVectors] = {};
  for (int64_t d = 0; d < width; ++d) {
    V key[kVectors];
    for (int i = 0; i < kVectors; ++i) key[i] = *reinterpret_cast<const V*>(transposed + d * kBlock + i * kFloats);
    for (int r = 0; r < kRows; ++r) {
      const float query = queries[r * width + d];
      for (int i = 0; i < kVectors; ++i) sums[r][i] += query * key[i];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kVectors; ++i) *reinterpret_cast<V*>(scores + r * kBlock + i * kFloats) = sums[r][i];
  }
}

// The same with `count` keys, a multiple of 16.
template <int kFloats, int kRows, int kVectors = shared_vectors<kFloats>(kRows)>
SB_INLINE void score(const float* queries, const float* transposed, int64_t count, int64_t width, float* scores) {
  constexpr int kStep = kVectors * kFloats;
  int64_t s = 0;
  for (; s + kStep <= count; s += kStep) {
    dot_products<kFloats, kRows, kVectors>(queries, transposed + s, width, scores + s);
  }
  if constexpr (kVectors > 1) {
    score<kFloats, kRows, kVectors / 2>(queries, transposed + s, count - s, width, scores + s);
  }
}

// One slot of one parity.
template <int kFloats, int kRows, int kVectors>
SB_INLINE void add_slot(const float* weights, const float* values,
                        typename Vectors<kFloats>::Float (*total)[kVectors]) {
  using V = typename Vectors<kFloats>::Float;
  V value[kVectors];
  for (int i = 0; i < kVectors; ++i) value[i] = reinterpret_cast<const V*>(values)[i];
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kVectors; ++i) total[r][i] += weights[r * kBlock] * value[i];
  }
}

// sums[row] = sums[row] * decay[row] + sum_s weights[row][s] * values[s] for kVectors vectors of the head, of the even
// and of the odd slots; both at once while they fit, as a sum alone waits for its own last multiply-add.
template <int kFloats, int kRows, int kVectors>
SB_INLINE void add_vectors(const float* weights, const float* values, int64_t stride, int64_t count, const float* decay,
                           float* sums, int64_t width) {
  using V = typename Vectors<kFloats>::Float;
  constexpr int kParities = 2 * kRows * kVectors <= Vectors<kFloats>::kRegisters / 2 ? 2 : 1;
  for (int first = 0; first < 2; first += kParities) {
    float* of_parity[2] = {sums + first * kTaskRows * width, sums + kTaskRows * width};
    V total[kParities][kRows][kVectors];
    for (int parity = 0; parity < kParities; ++parity) {
      for (int r = 0; r < kRows; ++r) {
        const V* before = reinterpret_cast<const V*>(of_parity[parity] + r * width);
        for (int i = 0; i < kVectors; ++i) total[parity][r][i] = before[i] * decay[r];
      }
    }
    int64_t s = first;
    for (; s + kParities <= count; s += 2) {
      for (int parity = 0; parity < kParities; ++parity) {
        add_slot<kFloats, kRows, kVectors>(weights + s + parity, values + (s + parity) * stride, total[parity]);
      }
    }
    if (kParities == 2 && s < count) add_slot<kFloats, kRows, kVectors>(weights + s, values + s * stride, total[0]);
    for (int parity = 0; parity < kParities; ++parity) {
      for (int r = 0; r < kRows; ++r) {
        V* after = reinterpret_cast<V*>(of_parity[parity] + r * width);
        for (int i = 0; i < kVectors; ++i) after[i] = total[parity][r][i];
      }
    }
  }
}

// The same for a whole head, from vector d on.
template <int kFloats, int kRows, int kVectors = shared_vectors<kFloats>(kRows)>
SB_INLINE void add_values(const float* weights, const Block& block, int64_t count, const float* decay, float* sums,
                          int64_t width, int64_t d = 0) {
  for (; d + kVectors * kFloats <= width; d += kVectors * kFloats) {
    add_vectors<kFloats, kRows, kVectors>(weights, block.values + d, block.stride, count, decay, sums + d, width);
  }
  if constexpr (kVectors > 1) {
    add_values<kFloats, kRows, kVectors / 2>(weights, block, count, decay, sums, width, d);
  }
}

// Slots from `first` on, of those that the row sees: others may never have been written.
template <int kFloats>
SB_INLINE void add_tree_values(const Task& task, int64_t row, const float* weights, const Block& block, int64_t first,
                               int64_t last) {
  using V = typename Vectors<kFloats>::Float;
  const int64_t before = block.start - task.p.prefix_length[task.b];
  for (int64_t s = first; s < last; ++s) {
    if (!task.sees(row, before + s)) continue;
    float* sums = task.scratch.sums.data() + (s % 2 * kTaskRows + row) * task.width;
    const float* values = block.values + s * block.stride;
    for (int64_t d = 0; d < task.width; d += kFloats) {
      *reinterpret_cast<V*>(sums + d) += weights[s] * *reinterpret_cast<const V*>(values + d);
    }
  }
}

// One past the last tree slot that a row's node sees.
SB_INLINE int64_t tree_end(const Task& task, int64_t row) {
  if (task.p.ancestor_bits == nullptr) return task.node(row) + 1;
  const uint32_t* bits = task.bits(row);
  int64_t word = task.p.W - 1;
  while (word >= 0 && bits[word] == 0) --word;
  return word < 0 ? 0 : 32 * word + 32 - __builtin_clz(bits[word]);
}

// How many of the first tree slots (of 32, if there are bits) `count` rows all see.
SB_INLINE int64_t tree_shared(const Task& task, int64_t row, int64_t count) {
  if (task.p.ancestor_bits == nullptr) return task.node(row) + 1;
  uint32_t unseen = 0;
  for (int64_t r = 0; r < count; ++r) unseen |= ~task.bits(row + r)[0];
  return unseen == 0 ? 32 : __builtin_ctz(unseen);
}

// Scores of slots that the node does not see become -inf, and those up to the next multiple of 16.
SB_INLINE void mask_scores(const Task& task, int64_t row, int64_t start, int64_t count, float* scores) {
  for (int64_t s = count; s % kLanes != 0; ++s) scores[s] = -kInfinity;
  const int64_t before = start - task.p.prefix_length[task.b];
  if (task.p.ancestor_bits == nullptr) return;
  for (int64_t s = std::max<int64_t>(0, -before); s < count; ++s) {
    if (!task.sees(row, before + s)) scores[s] = -kInfinity;
  }
}

// Scores become weights exp(score - max); returns their sum. NaN stays NaN.
SB_INLINE float weigh(float* scores, int64_t count, float max) {
  float lanes[kLanes] = {};
  for (int64_t s = 0; s < count; s += kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      const float difference = scores[s + i] - max;
      const float weight = exp_nonpositive(difference);
      scores[s + i] = difference == difference ? weight : difference;
      lanes[i] += scores[s + i];
    }
  }
  return add_lanes(lanes);
}

// Ignores NaN.
template <int kFloats>
SB_INLINE float max_of(const float* scores, int64_t count) {
  using V = typename Vectors<kFloats>::Float;
  V lanes = V{} - kInfinity;
  for (int64_t s = 0; s < count; s += kFloats) {
    const V score = *reinterpret_cast<const V*>(scores + s);
    lanes = score > lanes ? score : lanes;
  }
  float max = -kInfinity;
  for (int i = 0; i < kFloats; ++i) max = lanes[i] > max ? lanes[i] : max;
  return max;
}

// Weights of query rows over the block, from their scores; scratch.decay: of what they have summed before.
template <int kFloats, int kRows>
SB_INLINE void weigh_rows(const Task& task, int64_t row, int64_t start, const int64_t* visible) {
  Scratch& scratch = task.scratch;
  float base[kRows];
  int64_t padded[kRows];
  for (int r = 0; r < kRows; ++r) {
    padded[r] = (visible[r] + kLanes - 1) / kLanes * kLanes;
    mask_scores(task, row + r, start, visible[r], scratch.scores[r]);
    base[r] = max_of<kFloats>(scratch.scores[r], padded[r]);
  }
  for (int r = 0; r < kRows; ++r) {
    const float before = scratch.max[row + r], max = base[r] > before ? base[r] : before;
    // A row of NaN scores has no maximum; weights against 0 keep the NaN.
    base[r] = max == -kInfinity ? 0.0f : max;
    scratch.decay[r] = exp_nonpositive(before - base[r]);
    scratch.max[row + r] = max;
  }
  for (int r = 0; r < kRows; ++r) {
    const float sum = weigh(scratch.scores[r], padded[r], base[r]);
    scratch.total[row + r] = scratch.total[row + r] * scratch.decay[r] + sum;
  }
}

template <int kFloats, int kRows>
SB_INLINE void attend_rows(const Task& task, int64_t row, const Block& block) {
  Scratch& scratch = task.scratch;
  const int64_t width = task.width, prefix = task.p.prefix_length[task.b];
  const int64_t columns = (block.count + kLanes - 1) / kLanes * kLanes;
  score<kFloats, kRows>(scratch.queries.data() + row * width, scratch.transposed.data(), columns, width,
                        scratch.scores[0]);
  const auto within = [&](int64_t end) { return std::max<int64_t>(0, std::min(block.count, end - block.start)); };
  int64_t visible[kRows];
  for (int r = 0; r < kRows; ++r) visible[r] = within(prefix + tree_end(task, row + r));
  weigh_rows<kFloats, kRows>(task, row, block.start, visible);
  const int64_t shared = within(prefix + tree_shared(task, row, kRows));
  add_values<kFloats, kRows>(scratch.scores[0], block, shared, scratch.decay, scratch.sums.data() + row * width, width);
  for (int r = 0; r < kRows; ++r) {
    add_tree_values<kFloats>(task, row + r, scratch.scores[r], block, shared, visible[r]);
  }
}

// The first `count` rows from `row` on, kRows at most.
template <int kFloats, int kRows>
SB_INLINE void attend_some(const Task& task, int64_t row, int64_t count, const Block& block) {
  if (count == kRows) return attend_rows<kFloats, kRows>(task, row, block);
  if constexpr (kRows > 1) attend_some<kFloats, kRows - 1>(task, row, count, block);
}

// All rows, in parts of equal size.
template <int kFloats>
SB_INLINE void attend_all(const Task& task, const Block& block) {
  constexpr int kMost = kFloats == 16 ? kMaxShared : 6;
  transpose<kFloats>(block.keys, block.stride, block.count, task.width, task.scratch.transposed.data(), kBlock);
  int64_t row = 0;
  for (int64_t parts = (task.num_rows + kMost - 1) / kMost; parts > 0; --parts) {
    const int64_t count = (task.num_rows - row + parts - 1) / parts;
    attend_some<kFloats, kMost>(task, row, count, block);
    row += count;
  }
}

SB_VECTOR_VERSIONS(void attend_block(const Task& task, const Block& block), attend_all<kFloats>(task, block))

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
  const size_t size = kTaskRows * task.width;
  if (scratch.queries.size() < size) scratch.queries.resize(size), scratch.sums.resize(2 * size);
  const size_t block = kBlock * task.width;
  if (scratch.keys.size() < block) {
    for (std::vector<float>* buffer : {&scratch.keys, &scratch.values, &scratch.transposed}) buffer->resize(block);
  }
  for (const int64_t odd : {0, 1}) {
    std::fill_n(scratch.sums.begin() + odd * kTaskRows * task.width, task.num_rows * task.width, 0.0f);
  }
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
    const float *even = task.scratch.sums.data() + row * task.width, *odd = even + kTaskRows * task.width;
    for (int64_t d = 0; d < task.p.D; ++d) from_float((even[d] + odd[d]) * factor, out + d);
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
    attend_block(task, {start, count, key_block, value_block, stride});
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
  const int64_t rows = p.N * (p.Hq / p.Hkv), chunks = (rows + kTaskRows - 1) / kTaskRows;
  const int64_t width = (p.D + kLanes - 1) / kLanes * kLanes;
  parallel_for(p.B * p.Hkv * chunks, estimated_microseconds(p), [&](int64_t i) {
    thread_local Scratch scratch;
    const int64_t first_row = i % chunks * kTaskRows;
    attend(
        {p, i / chunks / p.Hkv, i / chunks % p.Hkv, first_row, std::min(kTaskRows, rows - first_row), width, scratch});
  });
}

}  // namespace specbranch::cpu
