#include "verify/verify.cuh"

namespace specbranch::cuda {
void verify(const VerifyParams& p, void* stream) { run_verify(p, static_cast<Stream>(stream)); }
}  // namespace specbranch::cuda
