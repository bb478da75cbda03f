// Checks that several bindings share.
#pragma once

#include "common/tensor_arg.h"

namespace specbranch {

void check_slots(const TensorArg& slots, int64_t S);                         // each -1 or in 0..S-1
void check_positions(const TensorArg& positions, int64_t P);                 // each a row of the tables
void check_prefix(const TensorArg& prefix, int64_t N, int64_t S);            // room for N more slots
void check_bits(const TensorArg& bits, const TensorArg& prefix, int64_t S);  // none past the cache
constexpr Types kWeights = kFloat32 | kBFloat16 | kInt8;                     // what `linear` takes
constexpr const char* kPackedShape = "[ceil(N / 64), K or (int8) K + 4, 64]";
void check_weight(const TensorArg& weight, int64_t inputs, int64_t outputs);  // packed, as LinearParams says
CacheLayer cache_layer(const TensorArg& cache);                               // of [2, B, Hkv, S, D]

}  // namespace specbranch
