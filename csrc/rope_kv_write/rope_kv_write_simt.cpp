#include "rope_kv_write/rope_kv_write.cuh"

namespace specbranch::simt {
void rope_kv_write(const RopeKvWriteParams& p, Order order) { run_rope_kv_write(p, order); }
}  // namespace specbranch::simt
