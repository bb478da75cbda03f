// A small, honest stand-in for a CUDA grid, so that g++ can compile a kernel header and a CPU can run it.
//
// Only for kernels without barriers: the threads of the grid run one after another, each from start to end, in an order
// that the caller selects (forward, reverse, random), so that a kernel that depends on the order gives itself away.
// __syncthreads, warp shuffles, atomics and shared memory are left undefined on purpose: a kernel that uses them does
// not compile here rather than run wrongly. (The emulator with one fiber per thread, which has them, comes with the
// CUDA backend.) Memory ordering is not emulated.
#pragma once

#include <cstdint>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "ops.h"

#define __global__
#define __device__
#define __forceinline__ inline

namespace specbranch::simt {

struct Dim {
  unsigned x;
};

inline thread_local Dim threadIdx, blockIdx, blockDim, gridDim;

template <typename Kernel, typename... Args>
void launch(Order order, unsigned blocks, unsigned threads, Kernel kernel, const Args&... args) {
  std::vector<uint64_t> sequence(uint64_t{blocks} * threads);
  std::iota(sequence.begin(), sequence.end(), uint64_t{0});
  if (order == Order::kReverse) std::vector<uint64_t>(sequence.rbegin(), sequence.rend()).swap(sequence);
  if (order == Order::kRandom) {
    std::mt19937_64 random(sequence.size());  // the same order in every run
    for (size_t i = sequence.size(); i > 1; --i) std::swap(sequence[i - 1], sequence[random() % i]);
  }
  gridDim = {blocks};
  blockDim = {threads};
  for (const uint64_t thread : sequence) {
    blockIdx = {static_cast<unsigned>(thread / threads)};
    threadIdx = {static_cast<unsigned>(thread % threads)};
    kernel(args...);
  }
}

}  // namespace specbranch::simt
