// Tensor-core products and what feeds them, each behind a function that the emulated grid can run too.
//
// mma.sync m16n8k16: C [16, 8] += A [16, 16] B [16, 8], A and B 16-bit, C float32; a warp holds the matrices together.
// With g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix fragments for mma.m16n8k16"), a lane holds
//   A: word 0: A[g][2t, 2t+1], word 1: A[g+8][2t, 2t+1], word 2: A[g][2t+8, 2t+9], word 3: A[g+8][2t+8, 2t+9]
//   B: word 0: B[2t, 2t+1][g], word 1: B[2t+8, 2t+9][g]
//   C: C[g][2t], C[g][2t+1], C[g+8][2t], C[g+8][2t+1]
// the lower index in the lower half of a word. A pair of C, rounded, is therefore a word of A.
// The fallbacks follow those tables; tests/test_mma.py holds them against plain products. On a GPU the sum over k has
// an order of its own; the fallback adds in order of k.
#pragma once

#include <type_traits>

#include "common/gpu.h"

#if !defined(__CUDACC__)
#include <vector>
#endif

namespace specbranch::SB_GPU {

struct FragmentA {
  uint32_t words[4];
};
struct FragmentB {
  uint32_t words[2];
};
struct FragmentC {
  float values[4];
};

#if defined(__CUDACC__)

template <typename T>
__device__ inline void multiply_add(const FragmentA& a, const FragmentB& b, FragmentC* c) {
  float* v = c->values;
  const uint32_t *x = a.words, *y = b.words;
  if constexpr (std::is_same<T, BFloat16>::value) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3])
        : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(v[0]), "+f"(v[1]), "+f"(v[2]), "+f"(v[3])
        : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
  }
}

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane 8 i + r brings the address of row r of matrix i (16
// bytes, aligned); word i of a lane is matrix i at [g][2t, 2t+1], or of its transpose.
__device__ inline void load_matrices(const void* row, uint32_t (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_transposed(const void* row, uint32_t (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

// Starts to copy 16 aligned bytes from global to shared memory; zeros where not `given`, the source is not read then.
__device__ inline void start_copy(void* shared, const void* global, bool given) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(given ? 16 : 0)
               : "memory");
}
// What this thread has started since the last call is a group.
__device__ inline void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kOpen groups of this thread are under way; other threads see the bytes after a barrier.
template <int kOpen>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
}

#else

inline uint32_t half_of(uint32_t word, int i) { return word >> (16 * i) & 0xFFFFu; }

template <typename T>
float element_of(uint32_t bits) {
  return to_float(T{static_cast<uint16_t>(bits)});
}

template <typename T>
void multiply_add(const FragmentA& a, const FragmentB& b, FragmentC* c) {
  __shared__ float left[32][16][16], right[32][16][8];
  const unsigned warp = threadIdx.x / 32;
  const int g = lane_id() / 4, t = lane_id() % 4;
  for (int i = 0; i < 8; ++i)
    left[warp][g + i / 2 % 2 * 8][2 * t + i % 2 + i / 4 * 8] = element_of<T>(half_of(a.words[i / 2], i % 2));
  for (int i = 0; i < 4; ++i) right[warp][2 * t + i % 2 + i / 2 * 8][g] = element_of<T>(half_of(b.words[i / 2], i % 2));
  __syncwarp();
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 16; ++k) c->values[i] += left[warp][g + i / 2 * 8][k] * right[warp][k][2 * t + i % 2];
  __syncwarp();
}

inline uint16_t element_at(uintptr_t row, int column) { return reinterpret_cast<const uint16_t*>(row)[column]; }

inline void load_matrices(const void* row, uint32_t (&words)[4]) {
  const int g = lane_id() / 4, t = lane_id() % 4;
  for (int i = 0; i < 4; ++i) {
    const uintptr_t from = __shfl_sync(kFullMask, reinterpret_cast<uintptr_t>(row), 8 * i + g);
    words[i] = element_at(from, 2 * t) | static_cast<uint32_t>(element_at(from, 2 * t + 1)) << 16;
  }
}
inline void load_transposed(const void* row, uint32_t (&words)[4]) {
  const int g = lane_id() / 4, t = lane_id() % 4;
  for (int i = 0; i < 4; ++i) {
    const uintptr_t low = __shfl_sync(kFullMask, reinterpret_cast<uintptr_t>(row), 8 * i + 2 * t);
    const uintptr_t high = __shfl_sync(kFullMask, reinterpret_cast<uintptr_t>(row), 8 * i + 2 * t + 1);
    words[i] = element_at(low, g) | static_cast<uint32_t>(element_at(high, g)) << 16;
  }
}

// A copy under way: the bytes arrive when they are waited for, until then the destination is full of NaN.
struct OpenCopy {
  void* to;
  unsigned char bytes[16];
};
struct OpenCopies {
  std::vector<std::vector<OpenCopy> > groups{1};  // the last one is still being filled
};
inline OpenCopies& open_copies() {
  static OpenCopies of_thread[1024];
  return of_thread[threadIdx.x];
}
inline void start_copy(void* shared, const void* global, bool given) {
  OpenCopy copy{shared, {}};
  if (given) std::memcpy(copy.bytes, global, sizeof(copy.bytes));
  std::memset(shared, 0xFF, sizeof(copy.bytes));
  open_copies().groups.back().push_back(copy);
}
inline void end_copy_group() { open_copies().groups.emplace_back(); }
template <int kOpen>
void wait_for_copies() {
  auto& groups = open_copies().groups;
  while (groups.size() > kOpen + 1) {
    for (const OpenCopy& copy : groups.front()) std::memcpy(copy.to, copy.bytes, sizeof(copy.bytes));
    groups.erase(groups.begin());
  }
}

#endif

// Two numbers rounded to T, in one word.
template <typename T>
__device__ inline uint32_t rounded_pair(float low, float high) {
#if defined(__CUDACC__)
  uint32_t word;
  if constexpr (std::is_same<T, BFloat16>::value) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
#else
  T pair[2];
  from_float(low, &pair[0]);
  from_float(high, &pair[1]);
  return pair[0].bits | static_cast<uint32_t>(pair[1].bits) << 16;
#endif
}

template <typename T>
__device__ inline float low_of(uint32_t word) {
  return to_float(T{static_cast<uint16_t>(word)});
}
template <typename T>
__device__ inline float high_of(uint32_t word) {
  return to_float(T{static_cast<uint16_t>(word >> 16)});
}

}  // namespace specbranch::SB_GPU
