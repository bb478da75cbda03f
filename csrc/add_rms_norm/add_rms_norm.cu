#include "add_rms_norm/add_rms_norm.cuh"

namespace specbranch::cuda {
void add_rms_norm(const AddRmsNormParams& p, void* stream) { run_add_rms_norm(p, static_cast<Stream>(stream)); }
}  // namespace specbranch::cuda
