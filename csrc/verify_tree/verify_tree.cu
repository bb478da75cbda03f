#include "verify_tree/verify_tree.cuh"

namespace specbranch::cuda {
void verify_tree(const VerifyTreeParams& p, void* stream) { run_verify_tree(p, static_cast<Stream>(stream)); }
}  // namespace specbranch::cuda
