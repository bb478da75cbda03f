// What a kernel header (<op>.cuh) includes. It is compiled twice: by nvcc into namespace specbranch::cuda, and by g++
// against the emulated grid of simt/simt.h into namespace specbranch::simt:
//
//   namespace specbranch::SB_GPU {
//   template <typename T> __global__ void scale_kernel(const T* x, int64_t size, float factor, T* out) { ... }
//   inline void run_scale(const ScaleParams& p, Stream stream) {
//     launch(scale_kernel<float>, dim3(blocks), dim3(256), shared_bytes, stream, p.x, p.size, p.factor, p.out);
//   }
//   }
//
// <op>.cu and <op>_simt.cpp are then three lines each: include it and define the function that ops.h declares.
// Dynamic shared memory: SB_DYNAMIC_SHARED(float, name); static: __shared__ float name[32]. No allocation, no
// synchronisation and no host reads of device memory in a run function, so that graphs can capture it.
#pragma once

#include "common/element.h"
#include "common/portable.h"
#include "ops.h"

#if defined(__CUDACC__)

#include <utility>

#include "common/launch.h"

#define SB_GPU cuda
#define SB_UNROLL _Pragma("unroll")  // a loop over an array that is to live in registers
#define SB_DYNAMIC_SHARED(type, name)                  \
  extern __shared__ __align__(128) char sb_dynamic_[]; \
  type* name = reinterpret_cast<type*>(sb_dynamic_)

namespace specbranch::cuda {

using Stream = cudaStream_t;

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream, Args&&... args) {
  if (shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          "shared memory of a launch");
  }
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Params>(std::forward<Args>(args))...);
  check(cudaGetLastError(), "launch");
}

}  // namespace specbranch::cuda

#else

#include "simt/simt.h"

#define SB_GPU simt
#define SB_UNROLL

namespace specbranch::simt {

using Stream = Order;

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Stream order, const Args&... args) {
  run_grid(order, grid, block, shared_bytes, [&] { kernel(static_cast<Params>(args)...); });
}

}  // namespace specbranch::simt

#endif

namespace specbranch::SB_GPU {

constexpr uint32_t kFullMask = 0xFFFFFFFFu;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls go(T{}) with the element type that a dtype names.
template <typename Go>
void with_element(DType dtype, const Go& go) {
  if (dtype == DType::kFloat32) return go(float{});
  if (dtype == DType::kBFloat16) return go(BFloat16{});
  go(Float16{});
}

}  // namespace specbranch::SB_GPU
