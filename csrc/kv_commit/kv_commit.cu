#include "kv_commit/kv_commit.cuh"

namespace specbranch::cuda {
void kv_commit(const KvCommitParams& p, void* stream) { run_kv_commit(p, static_cast<Stream>(stream)); }
}  // namespace specbranch::cuda
