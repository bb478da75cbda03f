#include "tree_mask/tree_mask.cuh"

namespace specbranch::cuda {
void tree_mask(const TreeMaskParams& p, void* stream) { run_tree_mask(p, static_cast<Stream>(stream)); }
}  // namespace specbranch::cuda
