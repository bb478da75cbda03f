#include "branch_topk/branch_topk.cuh"

namespace specbranch::cuda {
void branch_topk(const BranchTopkParams& p, void* stream) { run_branch_topk(p, static_cast<Stream>(stream)); }
}  // namespace specbranch::cuda
