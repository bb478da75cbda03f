#include "tree_mask/tree_mask.cuh"

namespace specbranch::simt {
void tree_mask(const TreeMaskParams& p, Order order) { run_tree_mask(p, order); }
}  // namespace specbranch::simt
