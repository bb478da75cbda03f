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

}  // namespace specbranch::simt
