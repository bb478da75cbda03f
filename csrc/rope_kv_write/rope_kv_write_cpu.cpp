// From the joint projection of N tokens: normalise q and k heads (where weights are given), rotate them, put k and v
// into their cache slots, return q.
//
//   x = x / sqrt(mean(x^2) + eps) * norm        out[i] = x[i] cos - x[i + D/2] sin,  out[i + D/2] = x[i + D/2] cos +
//   x[i] sin
//
// Layout: qkv [B, N, Hq + 2 Hkv, D] contiguous: q heads, k heads, v heads; cos, sin [P, D/2] float32, row positions[b,
// n];
//         q out [B, N, Hq, D]; cache strided, last dimension contiguous; slot -1: k and v are not kept.
// Work:   one pass over the heads of a token; element-wise, bound by memory bytes; tokens spread over threads in
// prefill. Order:  the mean square is summed in 16 fixed lanes (common/lanes.h).
#include <cmath>
#include <cstring>

#include "common/element.h"
#include "common/lanes.h"
#include "common/parallel.h"
#include "ops.h"

namespace specbranch::cpu {
namespace {

template <typename T>
SB_INLINE void rotate_head(const T* in, const T* norm, float eps, const float* cos, const float* sin, int64_t D,
                           T* __restrict__ out) {
  const int64_t half = D / 2;
  const T *low = in, *high = in + half;
  if (norm == nullptr) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = to_float(low[i]), b = to_float(high[i]);
      from_float(a * cos[i] - b * sin[i], out + i);
      from_float(b * cos[i] + a * sin[i], out + half + i);
    }
    return;
  }
  const float factor = 1.0f / std::sqrt(sum_of_squares(in, D) / static_cast<float>(D) + eps);
  for (int64_t i = 0; i < half; ++i) {
    const float a = to_float(low[i]) * factor * to_float(norm[i]);
    const float b = to_float(high[i]) * factor * to_float(norm[half + i]);
    from_float(a * cos[i] - b * sin[i], out + i);
    from_float(b * cos[i] + a * sin[i], out + half + i);
  }
}

template <typename T>
SB_INLINE void place_token(const RopeKvWriteParams& p, int64_t token) {
  const T* heads = static_cast<const T*>(p.qkv) + token * (p.Hq + 2 * p.Hkv) * p.D;
  const float* cos = p.cos_table + p.positions[token] * (p.D / 2);
  const float* sin = p.sin_table + p.positions[token] * (p.D / 2);
  T* q = static_cast<T*>(p.q) + token * p.Hq * p.D;
  for (int64_t h = 0; h < p.Hq; ++h) {
    rotate_head(heads + h * p.D, static_cast<const T*>(p.q_norm), p.eps, cos, sin, p.D, q + h * p.D);
  }
  const int64_t slot = p.slots[token];
  if (slot < 0) return;
  const T *keys = heads + p.Hq * p.D, *values = keys + p.Hkv * p.D;
  T* cache = static_cast<T*>(p.cache.data) + (token / p.N) * p.cache.batch_stride + slot * p.cache.slot_stride;
  for (int64_t h = 0; h < p.Hkv; ++h) {
    T* key = cache + h * p.cache.head_stride;
    rotate_head(keys + h * p.D, static_cast<const T*>(p.k_norm), p.eps, cos, sin, p.D, key);
    std::memcpy(key + p.cache.kv_stride, values + h * p.D, p.D * sizeof(T));
  }
}

SB_TARGET_CLONES void token_float32(const RopeKvWriteParams& p, int64_t token) { place_token<float>(p, token); }
SB_TARGET_CLONES void token_bfloat16(const RopeKvWriteParams& p, int64_t token) { place_token<BFloat16>(p, token); }
SB_TARGET_CLONES void token_float16(const RopeKvWriteParams& p, int64_t token) { place_token<Float16>(p, token); }

}  // namespace

void rope_kv_write(const RopeKvWriteParams& p) {
  const auto token = p.dtype == DType::kFloat32    ? token_float32
                     : p.dtype == DType::kBFloat16 ? token_bfloat16
                                                   : token_float16;
  const double microseconds = static_cast<double>(p.B * p.N * (p.Hq + 2 * p.Hkv) * p.D) * 5e-4;
  parallel_for(p.B * p.N, microseconds, [&](int64_t i) { token(p, i); });
}

}  // namespace specbranch::cpu
