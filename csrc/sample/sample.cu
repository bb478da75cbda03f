#include "sample/sample.cuh"

namespace specbranch::cuda {
void sample(const SampleParams& p, void* stream) { run_sample(p, static_cast<Stream>(stream)); }
}  // namespace specbranch::cuda
