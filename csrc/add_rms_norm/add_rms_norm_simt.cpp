#include "add_rms_norm/add_rms_norm.cuh"

namespace specbranch::simt {
void add_rms_norm(const AddRmsNormParams& p, Order order) { run_add_rms_norm(p, order); }
}  // namespace specbranch::simt
