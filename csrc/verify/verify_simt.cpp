#include "verify/verify.cuh"

namespace specbranch::simt {
void verify(const VerifyParams& p, Order order) { run_verify(p, order); }
}  // namespace specbranch::simt
