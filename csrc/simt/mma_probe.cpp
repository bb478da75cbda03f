// One warp multiplies matrices through common/mma.cuh, for tests/test_mma.py.
#include <cstring>

#include "common/mma.cuh"
#include "simt/probes.h"

namespace specbranch::simt {
namespace {

// As attention does it: A from global memory by the fragments' table, B [n][k] by load_matrices or, where it comes as
// [k][n], by load_transposed; both are copied to shared memory first.
template <typename T>
__global__ void product_kernel(const T* a, const T* b, bool transposed, float* c) {
  __shared__ T shared[16][24];
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  const int columns = transposed ? 8 : 16, rows = transposed ? 16 : 8;
  for (int i = lane; i < 16 * 2; i += 32) {
    const int row = i / 2, column = i % 2 * 8;
    const bool given = row < rows && column < columns;
    start_copy(&shared[row][column], given ? b + row * columns + column : b, given);
  }
  end_copy_group();
  wait_for_copies<0>();
  __syncthreads();
  FragmentA left;
  for (int i = 0; i < 4; ++i)
    std::memcpy(&left.words[i], a + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8, sizeof(uint32_t));
  uint32_t words[4];
  if (transposed) {
    load_transposed(&shared[lane % 16][lane / 16 * 8], words);
  } else {
    load_matrices(&shared[lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8], words);
  }
  FragmentC sums = {{1.0f, 1.0f, 1.0f, 1.0f}};
  multiply_add<T>(left, {words[0], words[1]}, &sums);
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums.values[i];
}

}  // namespace

void product_by_mma(DType dtype, const void* a, const void* b, bool transposed, Order order, float* c) {
  with_element(dtype, [&](auto element) {
    using T = decltype(element);
    if constexpr (sizeof(T) == 2) {
      launch(product_kernel<T>, dim3(1), dim3(32), 0, order, static_cast<const T*>(a), static_cast<const T*>(b),
             transposed, c);
    }
  });
}

}  // namespace specbranch::simt
