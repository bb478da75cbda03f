// What lets one header serve g++ (cpu and simt) and nvcc (cuda): SB_HD marks functions that run on both sides, and
// SB_TARGET_CLONES compiles a leaf loop for several x86 levels and picks one when the module is loaded.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define SB_HD __host__ __device__ __forceinline__
#else
#define SB_HD inline __attribute__((always_inline))
#endif

// Every clone gives the same bits: the sources use explicit fma and fixed reduction trees, and are compiled with
// -ffp-contract=off. Sanitizers and ifunc do not mix, hence the SB_NO_TARGET_CLONES switch.
#if !defined(SB_TARGET_CLONES)
#if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__CUDACC__) && !defined(SB_NO_TARGET_CLONES)
#define SB_HAS_TARGET_CLONES
#define SB_TARGET_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define SB_TARGET_CLONES
#endif
#endif

namespace specbranch {

SB_HD uint32_t float_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

SB_HD float bits_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

SB_HD float fused_multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

// A product that is rounded before it is used, whatever nvcc's -fmad would make of a sum around it.
SB_HD float rounded_multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

SB_HD double rounded_multiply(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

}  // namespace specbranch
