#include "kv_write/kv_write.cuh"

namespace specbranch::simt {
void kv_write(const KvWriteParams& p, Order order) { run_kv_write(p, order); }
}  // namespace specbranch::simt
