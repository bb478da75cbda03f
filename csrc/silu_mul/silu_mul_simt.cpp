#include "silu_mul/silu_mul.cuh"

namespace specbranch::simt {
void silu_mul(const SiluMulParams& p, Order order) { run_silu_mul(p, order); }
}  // namespace specbranch::simt
