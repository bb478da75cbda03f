// Accesses as wide as everything involved allows: units of 16, 4 or 2 bytes, or packs of elements.
#pragma once

#include "common/aligned.h"
#include "common/gpu.h"

namespace specbranch::SB_GPU {

struct alignas(16) Unit16 {
  uint32_t words[4];
};

// kPack neighbouring elements in one access.
template <typename T, int kPack>
struct alignas(sizeof(T) * kPack) Pack {
  T values[kPack];
};

template <typename T, int kPack>
__device__ Pack<T, kPack> load_pack(const T* source) {
  return *reinterpret_cast<const Pack<T, kPack>*>(source);
}

template <typename T, int kPack>
__device__ void store_pack(const Pack<T, kPack>& pack, T* destination) {
  *reinterpret_cast<Pack<T, kPack>*>(destination) = pack;
}

// Calls go(Unit{}) with the widest unit for which fits(its size) holds; 2 bytes, half an element or more, always does.
template <typename Fits, typename Go>
void with_unit(const Fits& fits, const Go& go) {
  if (fits(sizeof(Unit16))) return go(Unit16{});
  if (fits(sizeof(uint32_t))) return go(uint32_t{});
  go(uint16_t{});
}

}  // namespace specbranch::SB_GPU
