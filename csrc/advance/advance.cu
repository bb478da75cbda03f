#include "advance/advance.cuh"

namespace specbranch::cuda {
void advance(const AdvanceParams& p, void* stream) { run_advance(p, static_cast<Stream>(stream)); }
}  // namespace specbranch::cuda
