// Float vectors exactly as wide as the instruction set's registers: gcc takes wider ones apart element by element,
// which costs a factor of ten and more. A kernel is a template over kFloats, the width, and SB_VECTOR_VERSIONS defines
// the function that runs it at the width of the processor.
#pragma once

#include <utility>

#include "common/portable.h"

namespace specbranch {

template <int kFloats>
struct Vectors {
  // Loads and stores need no alignment.
  typedef float Float __attribute__((vector_size(kFloats * 4), aligned(4), may_alias));
  typedef uint32_t Words __attribute__((vector_size(kFloats * 4), aligned(1), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(kFloats * 4)));
  typedef int32_t Ints __attribute__((vector_size(kFloats * 4)));
  static constexpr int kRegisters = kFloats == 16 ? 32 : 16;
};

}  // namespace specbranch

// SB_VECTOR_VERSIONS(void f(int x), g<kFloats>(x)) defines f for every x86 level, each with its own kFloats; the right
// one is picked when the module is loaded.
#define SB_VECTOR_VERSION(target, width, signature, ...) \
  target signature {                                     \
    constexpr int kFloats = width;                       \
    __VA_ARGS__;                                         \
  }

#if defined(SB_HAS_TARGET_CLONES)
#define SB_VECTOR_VERSIONS(signature, ...)                                                \
  SB_VECTOR_VERSION(__attribute__((target("default"))), 4, signature, __VA_ARGS__)        \
  SB_VECTOR_VERSION(__attribute__((target("arch=x86-64-v3"))), 8, signature, __VA_ARGS__) \
  SB_VECTOR_VERSION(__attribute__((target("arch=x86-64-v4"))), 16, signature, __VA_ARGS__)
#elif defined(__AVX512F__)
#define SB_VECTOR_VERSIONS(signature, ...) SB_VECTOR_VERSION(, 16, signature, __VA_ARGS__)
#elif defined(__AVX__)
#define SB_VECTOR_VERSIONS(signature, ...) SB_VECTOR_VERSION(, 8, signature, __VA_ARGS__)
#else
#define SB_VECTOR_VERSIONS(signature, ...) SB_VECTOR_VERSION(, 4, signature, __VA_ARGS__)
#endif
