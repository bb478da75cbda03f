#include "silu_mul/silu_mul.cuh"

namespace specbranch::cuda {
void silu_mul(const SiluMulParams& p, void* stream) { run_silu_mul(p, static_cast<Stream>(stream)); }
}  // namespace specbranch::cuda
