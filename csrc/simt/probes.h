// Kernels that test the emulator itself, for bindings_probe.cpp.
#pragma once

#include <string>
#include <vector>

#include "ops.h"

namespace specbranch::simt {

// Runs the kernel of that name (one block of 96 threads) and returns what it wrote, 96 numbers.
std::vector<float> run_probe(const std::string& name, Order order);
// The sum of `values` by shuffles, shared memory and the last block.
float sum_on_grid(const std::vector<float>& values, unsigned threads, Order order);
// c [16, 8] = 1 + a [16, 16] b, by one mma of 16-bit elements; b is [8, 16] (n, k) or, transposed, [16, 8] (k, n).
void product_by_mma(DType dtype, const void* a, const void* b, bool transposed, Order order, float* c);

}  // namespace specbranch::simt
