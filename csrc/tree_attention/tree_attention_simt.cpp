#include "tree_attention/tree_attention.cuh"

namespace specbranch::simt {
void tree_attention(const TreeAttentionParams& p, Order order) { run_tree_attention(p, order); }
}  // namespace specbranch::simt
