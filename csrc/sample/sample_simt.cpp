#include "sample/sample.cuh"

namespace specbranch::simt {
void sample(const SampleParams& p, Order order) { run_sample(p, order); }
}  // namespace specbranch::simt
