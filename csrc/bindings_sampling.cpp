// Bindings of the sampling and verification ops. The pattern is explained in common/tensor_arg.h.
#include "bindings.h"
#include "common/tensor_arg.h"
#include "ops.h"

namespace py = pybind11;

namespace specbranch {

void register_sampling_ops(py::module_& m) { (void)m; }

}  // namespace specbranch
