// Checks that several bindings share.
#pragma once

#include "common/tensor_arg.h"

namespace specbranch {

void check_slots(const TensorArg& slots, int64_t S);  // each -1 or in 0..S-1
CacheLayer cache_layer(const TensorArg& cache);       // of [2, B, Hkv, S, D]

}  // namespace specbranch
