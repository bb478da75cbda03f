// Kernels that test the emulator itself: some right, most wrong on purpose. Run by tests/test_simt.py.
#include "simt/probes.h"

#include <vector>

#include "common/gpu.h"

namespace specbranch::simt {
namespace {

constexpr unsigned kThreads = 96;

// Right: sum over blocks by shuffles, shared memory, an atomic counter and the last block.
__global__ void sum_kernel(const float* values, int size, float* partial, unsigned* counter, float* out) {
  __shared__ float warp_sums[32];
  __shared__ bool is_last;
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = i < static_cast<unsigned>(size) ? values[i] : 0.0f;
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(kFullMask, sum, bits);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = 0.0f;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) partial[blockIdx.x] += warp_sums[w];
    __threadfence();
    is_last = atomicAdd(counter, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last || threadIdx.x != 0) return;
  *out = 0.0f;
  for (unsigned b = 0; b < gridDim.x; ++b) *out += partial[b];
  *counter = 0;
}

// Right: every collective once; lane i of a warp ends with a number that depends on all of them.
__global__ void collectives_kernel(float* out) {
  SB_DYNAMIC_SHARED(float, reversed);
  const int lane = static_cast<int>(threadIdx.x % 32);
  reversed[blockDim.x - 1 - threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  float value = reversed[threadIdx.x];
  value += __shfl_sync(kFullMask, static_cast<float>(lane), 5);
  value += 10.0f * __shfl_down_sync(kFullMask, static_cast<float>(lane), 3);
  value += 100.0f * __shfl_up_sync(kFullMask, static_cast<float>(lane), 4, 8);
  const uint32_t odd = __ballot_sync(kFullMask, lane & 1);
  if (lane < 16) value += static_cast<float>(__popc(__ballot_sync(0xFFFFu, lane < 3)));
  value += static_cast<float>(__popc(odd)) + static_cast<float>(__any_sync(kFullMask, lane == 7));
  value += static_cast<float>(__all_sync(kFullMask, lane < 31)) + static_cast<float>(__syncthreads_count(lane == 0));
  out[threadIdx.x] = value + static_cast<float>(__syncthreads_or(0) + __syncthreads_and(1));
}

__global__ void early_return_kernel(float*) {
  if (threadIdx.x >= 64) return;
  __syncthreads();
}

__global__ void divergent_barriers_kernel(float*) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void missing_lane_kernel(float*) {
  if (threadIdx.x % 32 != 9) __syncwarp();
}

__global__ void ballot_against_barrier_kernel(float*) {
  if (threadIdx.x < 16)
    __ballot_sync(kFullMask, 1);
  else
    __syncthreads();
}

__global__ void absent_source_kernel(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xFFFFu, 1.0f, 20);
}

__global__ void wrong_mask_kernel(float* out) {
  out[threadIdx.x] = __shfl_xor_sync(threadIdx.x % 32 < 16 ? kFullMask : 0xFFFF0000u, 1.0f, 1);
}

// No error but a result that depends on the order of the threads: a barrier is missing.
__global__ void race_kernel(float* out) {
  __shared__ float value;
  if (threadIdx.x == 0) value = 0.0f;
  __syncthreads();
  if (threadIdx.x == 40) value = 1.0f;
  out[threadIdx.x] = value;
}

// The same over blocks.
__global__ void block_race_kernel(float* out) { out[0] = static_cast<float>(blockIdx.x); }

// For the address sanitizer: one float past the end of shared and of global memory.
__global__ void past_dynamic_shared_kernel(float* out) {
  SB_DYNAMIC_SHARED(float, memory);
  memory[threadIdx.x + 1] = 1.0f;
  out[threadIdx.x] = memory[threadIdx.x];
}
__global__ void past_static_shared_kernel(float* out) {
  __shared__ float memory[kThreads];
  memory[threadIdx.x + static_cast<unsigned>(out[0])] = 1.0f;
  out[threadIdx.x] = memory[threadIdx.x];
}
__global__ void past_global_kernel(float* out) { out[threadIdx.x + 1] = 1.0f; }

struct Probe {
  const char* name;
  void (*kernel)(float*);
  unsigned blocks;
};

const Probe kProbes[] = {
    {"collectives", collectives_kernel, 1},
    {"early_return", early_return_kernel, 1},
    {"divergent_barriers", divergent_barriers_kernel, 1},
    {"missing_lane", missing_lane_kernel, 1},
    {"ballot_against_barrier", ballot_against_barrier_kernel, 1},
    {"absent_source", absent_source_kernel, 1},
    {"wrong_mask", wrong_mask_kernel, 1},
    {"race", race_kernel, 1},
    {"block_race", block_race_kernel, 5},
    {"past_dynamic_shared", past_dynamic_shared_kernel, 1},
    {"past_static_shared", past_static_shared_kernel, 1},
    {"past_global", past_global_kernel, 1},
};

}  // namespace

std::vector<float> run_probe(const std::string& name, Order order) {
  std::vector<float> out(kThreads, 1.0f);
  for (const Probe& probe : kProbes) {
    if (name != probe.name) continue;
    launch(probe.kernel, dim3(probe.blocks), dim3(kThreads), kThreads * sizeof(float), order, out.data());
    return out;
  }
  throw std::invalid_argument("no probe is named " + name);
}

float sum_on_grid(const std::vector<float>& values, unsigned threads, Order order) {
  const auto blocks = static_cast<unsigned>(ceil_div(static_cast<int64_t>(values.size()), threads > 0 ? threads : 1));
  std::vector<float> partial(blocks);
  unsigned counter = 0;
  float out = -1.0f;
  for (int run = 0; run < 2; ++run) {  // twice: the counter must have re-armed itself
    launch(sum_kernel, dim3(blocks), dim3(threads), 0, order, values.data(), static_cast<int>(values.size()),
           partial.data(), &counter, &out);
  }
  return out;
}

}  // namespace specbranch::simt
