// kv_commit.cuh on CUDA: one launch on the caller's stream; no allocation, no synchronisation (it can be captured).
#include <type_traits>

#include "common/launch.h"
#include "kv_commit/kv_commit.cuh"

namespace specbranch::cuda {

void kv_commit(const KvCommitParams& p, void* stream) {
  with_commit_units(p, [&](auto* cache, const CommitShape& shape, unsigned blocks) {
    using Unit = std::remove_pointer_t<decltype(cache)>;
    kv_commit_kernel<Unit><<<blocks, kCommitThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        shape, cache, p.source_slots, p.dst_start, p.length);
    check(cudaGetLastError(), "kv_commit");
  });
}

}  // namespace specbranch::cuda
