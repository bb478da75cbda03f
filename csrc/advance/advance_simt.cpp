#include "advance/advance.cuh"

namespace specbranch::simt {
void advance(const AdvanceParams& p, Order order) { run_advance(p, order); }
}  // namespace specbranch::simt
