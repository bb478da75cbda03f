// Bindings of the ops on the tree and the slot cache. The pattern is explained in common/tensor_arg.h.
#include "bindings.h"
#include "common/tensor_arg.h"
#include "ops.h"

namespace py = pybind11;

namespace specbranch {
namespace {

// Value checks that kernels rely on, made before anything is written.
void check_parents(const TensorArg& parents, int64_t B, int64_t N) {
  const int32_t* values = parents.data<int32_t>();
  for (int64_t i = 0; i < B * N; ++i) {
    if (values[i] >= -1 && values[i] < i % N) continue;
    parents.fail_value("had " + std::to_string(values[i]) + " at [" + std::to_string(i / N) + ", " +
                       std::to_string(i % N) + "], must be -1 or the index of an earlier node");
  }
}

void tree_mask(py::handle parents_, py::handle bits_, py::handle depth_) {
  TensorArg parents("parents", parents_, kInt32, "[B, N]");
  TensorArg bits("out.bits", bits_, kInt32 | kUInt32, "[B, N, ceil(N / 32)]", kWritable);
  TensorArg depth("out.depth", depth_, kInt32, "[B, N]", kWritable);
  const int64_t B = parents.size(0), N = parents.size(1), W = (N + 31) / 32;
  bits.sizes({B, N, W});
  depth.sizes({B, N});
  check_parents(parents, B, N);
  TreeMaskParams params{B, N, W, parents.data<int32_t>(), bits.data<uint32_t>(), depth.data<int32_t>()};
  cpu::tree_mask(params);
}

}  // namespace

void register_cache_ops(py::module_& m) { m.def("tree_mask", &tree_mask); }

}  // namespace specbranch
