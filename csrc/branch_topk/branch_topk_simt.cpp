#include "branch_topk/branch_topk.cuh"

namespace specbranch::simt {
void branch_topk(const BranchTopkParams& p, Order order) { run_branch_topk(p, order); }
}  // namespace specbranch::simt
