// From the joint projection of N tokens: normalise q and k heads (where weights are given), rotate them, put k and v
// into their cache slots, return q.
//
//   x = x / sqrt(mean(x^2) + eps) * norm
//   out[i] = x[i] cos - x[i + D/2] sin,  out[i + D/2] = x[i + D/2] cos + x[i] sin
//
// Layout: qkv [B, N, Hq + 2 Hkv, D] contiguous: q heads, k heads, v heads; cos, sin [P, D/2] float32, row
//         positions[b, n]; q out [B, N, Hq, D]; cache strided, last dimension contiguous; slot -1: k, v are not kept.
// Work:   a warp per (token, head), four to a block; a lane takes pairs (i, i + D/2), two neighbouring ones in one
//         access where alignment allows. The second pass of a normalised head reads it from the L1 cache.
// Bound:  by latency; one launch for q, k and v.
// Order:  a lane sums the squares of its pairs in order of i, low before high; lanes meet in a butterfly of shuffles.
// A position outside the tables, which the host cannot see on the device, gives NaN; a slot outside -1 .. S - 1 is
// skipped like -1.
#pragma once

#include "common/units.h"

namespace specbranch::SB_GPU {

constexpr int kRopeWarps = 4;

// 1 / sqrt(mean(x^2) + eps) of one head, by the whole warp.
template <typename T, int kPack>
__device__ float inverse_rms(const T* x, int D, float eps, int lane) {
  float sum = 0.0f;
  for (int i = lane * kPack; i < D / 2; i += 32 * kPack) {
    const auto low = load_pack<T, kPack>(x + i), high = load_pack<T, kPack>(x + D / 2 + i);
    for (int k = 0; k < kPack; ++k) {
      const float a = to_float(low.values[k]), b = to_float(high.values[k]);
      sum = fused_multiply_add(b, b, fused_multiply_add(a, a, sum));
    }
  }
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(kFullMask, sum, bits);
  return 1.0f / sqrtf(sum / static_cast<float>(D) + eps);
}

// One head rotated; cos and sin are nullptr for a position outside the tables.
template <typename T, int kPack>
__device__ void rotate_head(const T* x, const T* norm, float eps, const float* cos, const float* sin, int D, int lane,
                            T* out) {
  const float factor = norm == nullptr ? 1.0f : inverse_rms<T, kPack>(x, D, eps, lane);
  const int half = D / 2;
  for (int i = lane * kPack; i < half; i += 32 * kPack) {
    const auto low = load_pack<T, kPack>(x + i), high = load_pack<T, kPack>(x + half + i);
    Pack<T, kPack> out_low, out_high;
    for (int k = 0; k < kPack; ++k) {
      float a = to_float(low.values[k]), b = to_float(high.values[k]);
      if (norm != nullptr) {
        a = a * factor * to_float(norm[i + k]);
        b = b * factor * to_float(norm[half + i + k]);
      }
      const float c = cos == nullptr ? bits_float(0x7FC00000u) : cos[i + k];
      const float s = cos == nullptr ? 0.0f : sin[i + k];
      from_float(a * c - b * s, &out_low.values[k]);
      from_float(b * c + a * s, &out_high.values[k]);
    }
    store_pack<T, kPack>(out_low, out + i);
    store_pack<T, kPack>(out_high, out + half + i);
  }
}

template <typename T, int kPack>
__device__ void copy_head(const T* x, int D, int lane, T* out) {
  for (int i = lane * kPack; i < D; i += 32 * kPack) store_pack<T, kPack>(load_pack<T, kPack>(x + i), out + i);
}

template <typename T, int kPack>
__global__ void rope_kv_write_kernel(RopeKvWriteParams p) {
  const int lane = static_cast<int>(threadIdx.x % 32), D = static_cast<int>(p.D);
  const int64_t heads = p.Hq + 2 * p.Hkv;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kRopeWarps + threadIdx.x / 32;
  const int64_t token = warp / heads, head = warp % heads;
  if (token >= p.B * p.N) return;
  const T* x = static_cast<const T*>(p.qkv) + warp * p.D;
  const int64_t position = p.positions[token], slot = p.slots[token];
  const bool known = position >= 0 && position < p.P;
  const float* cos = known ? p.cos_table + position * (p.D / 2) : nullptr;
  const float* sin = known ? p.sin_table + position * (p.D / 2) : nullptr;
  if (head < p.Hq) {
    T* q = static_cast<T*>(p.q) + (token * p.Hq + head) * p.D;
    return rotate_head<T, kPack>(x, static_cast<const T*>(p.q_norm), p.eps, cos, sin, D, lane, q);
  }
  if (slot < 0 || slot >= p.S) return;
  const int64_t kv_head = (head - p.Hq) % p.Hkv;
  T* key = static_cast<T*>(p.cache.data) + token / p.N * p.cache.batch_stride + kv_head * p.cache.head_stride +
           slot * p.cache.slot_stride;
  if (head < p.Hq + p.Hkv) {
    rotate_head<T, kPack>(x, static_cast<const T*>(p.k_norm), p.eps, cos, sin, D, lane, key);
  } else {
    copy_head<T, kPack>(x, D, lane, key + p.cache.kv_stride);
  }
}

template <typename T, int kPack>
void launch_rope(const RopeKvWriteParams& p, Stream stream) {
  const int64_t warps = p.B * p.N * (p.Hq + 2 * p.Hkv);
  if (warps == 0 || p.D == 0) return;
  launch(rope_kv_write_kernel<T, kPack>, dim3(static_cast<unsigned>(ceil_div(warps, kRopeWarps))),
         dim3(32 * kRopeWarps), 0, stream, p);
}

inline void run_rope_kv_write(const RopeKvWriteParams& p, Stream stream) {
  with_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    const uint64_t pair = 2 * sizeof(T);
    const bool paired = p.D % 4 == 0 && aligned({p.qkv, p.q}, pair) && aligned(p.cache, pair);
    paired ? launch_rope<T, 2>(p, stream) : launch_rope<T, 1>(p, stream);
  });
}

}  // namespace specbranch::SB_GPU
