#include "kv_write/kv_write.cuh"

namespace specbranch::cuda {
void kv_write(const KvWriteParams& p, void* stream) { run_kv_write(p, static_cast<Stream>(stream)); }
}  // namespace specbranch::cuda
