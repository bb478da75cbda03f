#include "kv_commit/kv_commit.cuh"

namespace specbranch::simt {
void kv_commit(const KvCommitParams& p, Order order) { run_kv_commit(p, order); }
}  // namespace specbranch::simt
