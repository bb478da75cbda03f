#include "tree_attention/tree_attention.cuh"

namespace specbranch::cuda {
void tree_attention(const TreeAttentionParams& p, void* stream) { run_tree_attention(p, static_cast<Stream>(stream)); }
}  // namespace specbranch::cuda
