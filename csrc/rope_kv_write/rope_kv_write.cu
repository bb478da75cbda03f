#include "rope_kv_write/rope_kv_write.cuh"

namespace specbranch::cuda {
void rope_kv_write(const RopeKvWriteParams& p, void* stream) { run_rope_kv_write(p, static_cast<Stream>(stream)); }
}  // namespace specbranch::cuda
