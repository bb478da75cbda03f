#include "verify_tree/verify_tree.cuh"

namespace specbranch::simt {
void verify_tree(const VerifyTreeParams& p, Order order) { run_verify_tree(p, order); }
}  // namespace specbranch::simt
