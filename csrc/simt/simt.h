// An emulated grid, so that g++ compiles the very kernels that nvcc ships and tests run them without a GPU.
//
// The threads of a block are fibers on one host thread. A fiber runs until it meets a barrier or a warp collective and
// then waits for the others; blocks run one after another. In which order is the caller's choice (forward, reverse,
// random): a kernel whose result depends on it gives itself away. What a GPU would only hang or corrupt on is an
// exception that says which threads wait where:
//   a barrier that not all threads of the block reach, or that some reach at another line;
//   a warp collective whose mask names a lane that has ended, waits elsewhere or passes another mask;
//   a shuffle that reads a lane which takes no part.
// Reads and writes out of bounds, of shared memory too, are found by a build with the address sanitizer.
// Not emulated: memory ordering (__threadfence is nothing), blocks that wait for each other, cooperative groups, and
// whatever is behind `#if defined(__CUDA_ARCH__)` (mma, cp.async): such instructions sit in small functions with a
// plain fallback. Two barriers on one source line are not told apart.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>

#include "ops.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __shared__ static  // blocks run one after another, so one copy serves them all

namespace specbranch::simt {

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Set anew whenever a fiber is entered; launches of one process take turns.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

// ---------------------------------------------------------------------------------------------- running a grid
using Body = std::function<void()>;  // one thread of the kernel, arguments bound
void run_grid(Order order, dim3 grid, dim3 block, size_t shared_bytes, const Body& body);
// The block's dynamic shared memory, 128-byte aligned; filled with garbage before every block.
void* dynamic_shared();

#define SB_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::specbranch::simt::dynamic_shared())

// ---------------------------------------------------------------------------------------------- barriers, collectives
struct Site {
  const char* what;
  const char* file;
  int line;
};

enum class Combine : uint32_t { kNone, kCount, kAnd, kOr };
// Waits for all threads of the block; what `combine` makes of their predicates.
int block_barrier(Site site, Combine combine, int predicate);
// Waits for the lanes of `mask`; the value that lane `source` brought.
uint64_t warp_exchange(Site site, uint32_t mask, uint64_t value, int source);
// Waits for the lanes of `mask`; bit i: predicate of lane i.
uint32_t warp_ballot(Site site, uint32_t mask, bool predicate);
int lane_id();

#define SB_SITE(what) \
  Site { what, file, line }
#define SB_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(SB_HERE) { block_barrier(SB_SITE("__syncthreads"), Combine::kNone, 0); }
inline int __syncthreads_count(int predicate, SB_HERE) {
  return block_barrier(SB_SITE("__syncthreads_count"), Combine::kCount, predicate);
}
inline int __syncthreads_and(int predicate, SB_HERE) {
  return block_barrier(SB_SITE("__syncthreads_and"), Combine::kAnd, predicate);
}
inline int __syncthreads_or(int predicate, SB_HERE) {
  return block_barrier(SB_SITE("__syncthreads_or"), Combine::kOr, predicate);
}
inline void __syncwarp(uint32_t mask = 0xFFFFFFFFu, SB_HERE) { warp_ballot(SB_SITE("__syncwarp"), mask, false); }
inline uint32_t __ballot_sync(uint32_t mask, int predicate, SB_HERE) {
  return warp_ballot(SB_SITE("__ballot_sync"), mask, predicate != 0);
}
inline int __any_sync(uint32_t mask, int predicate, SB_HERE) {
  return warp_ballot(SB_SITE("__any_sync"), mask, predicate != 0) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, SB_HERE) {
  return warp_ballot(SB_SITE("__all_sync"), mask, predicate != 0) == mask;
}

template <typename T>
T exchange(Site site, uint32_t mask, T value, int source) {
  static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_exchange(site, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// The lane that a shuffle reads; a lane outside its segment of `width` lanes reads itself.
inline int within(int source, int width) { return source / width == lane_id() / width ? source : lane_id(); }

template <typename T>
T __shfl_sync(uint32_t mask, T value, int source, int width = warpSize, SB_HERE) {
  const int first = lane_id() / width * width;
  return exchange(SB_SITE("__shfl_sync"), mask, value, first + (source & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = warpSize, SB_HERE) {
  return exchange(SB_SITE("__shfl_xor_sync"), mask, value, within(lane_id() ^ bits, width));
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = warpSize, SB_HERE) {
  return exchange(SB_SITE("__shfl_down_sync"), mask, value, within(lane_id() + static_cast<int>(delta), width));
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = warpSize, SB_HERE) {
  const int source = lane_id() - static_cast<int>(delta), first = lane_id() / width * width;
  return exchange(SB_SITE("__shfl_up_sync"), mask, value, source < first ? lane_id() : source);
}

// ---------------------------------------------------------------------------------------------- the rest
inline void __threadfence() {}
inline void __threadfence_block() {}

// Only one fiber runs at a time, so plain arithmetic is atomic.
template <typename T, typename V>
T atomicAdd(T* address, V value) {
  const T old = *address;
  *address = static_cast<T>(old + value);
  return old;
}
template <typename T>
T atomicMax(T* address, T value) {
  const T old = *address;
  *address = old > value ? old : value;
  return old;
}
template <typename T>
T atomicMin(T* address, T value) {
  const T old = *address;
  *address = old < value ? old : value;
  return old;
}
template <typename T>
T atomicOr(T* address, T value) {
  const T old = *address;
  *address = old | value;
  return old;
}
template <typename T>
T atomicExch(T* address, T value) {
  const T old = *address;
  *address = value;
  return old;
}
template <typename T>
T atomicCAS(T* address, T expected, T value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<uint32_t>(bits)); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
template <typename T>
T __ldg(const T* address) {
  return *address;
}

#undef SB_SITE
#undef SB_HERE

}  // namespace specbranch::simt
