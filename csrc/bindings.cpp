// The Python module specbranch._C: each bindings_<group>.cpp registers its ops, one line an op.
#include "bindings.h"

#include <pybind11/pybind11.h>

#include "common/parallel.h"

#ifndef SPECBRANCH_WITH_CUDA
#define SPECBRANCH_WITH_CUDA 0
#define SPECBRANCH_CUDA_VERSION ""
#define SPECBRANCH_CUDA_ARCHS ""
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = SPECBRANCH_VERSION;
  info["compiler"] = SPECBRANCH_COMPILER;
  info["flags"] = SPECBRANCH_FLAGS;
  info["cuda"] = bool(SPECBRANCH_WITH_CUDA);
  info["cuda_version"] = SPECBRANCH_CUDA_VERSION;
  info["cuda_archs"] = SPECBRANCH_CUDA_ARCHS;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of SpecBranch; use them through specbranch.ops.";
  m.def("build_info", &build_info);
  m.def("limit_threads", &specbranch::cpu::limit_threads);
  specbranch::register_cache_ops(m);
  specbranch::register_decoder(m);
  specbranch::register_layer_ops(m);
  specbranch::register_round_ops(m);
  specbranch::register_sampling_ops(m);
}
