// kv_commit.cuh under the emulator: the kernel that ships, run by the tests on machines without a GPU.
#include "ops.h"
#include "simt/simt.h"

namespace specbranch {
using simt::blockDim, simt::blockIdx, simt::threadIdx;
}  // namespace specbranch

#include "kv_commit/kv_commit.cuh"

namespace specbranch::simt {

void kv_commit(const KvCommitParams& p, Order order) {
  with_commit_units(p, [&](auto* cache, const CommitShape& shape, unsigned blocks) {
    using Unit = std::remove_pointer_t<decltype(cache)>;
    launch(order, blocks, kCommitThreads, kv_commit_kernel<Unit>, shape, cache, p.source_slots, p.dst_start, p.length);
  });
}

}  // namespace specbranch::simt
