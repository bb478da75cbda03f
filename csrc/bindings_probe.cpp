// Probes for tests: the random source and the arithmetic that every decision rests on, value by value. Not part of
// specbranch.ops.
#include <pybind11/stl.h>

#include "bindings.h"
#include "common/gumbel.h"
#include "common/tensor_arg.h"
#include "simt/probes.h"

namespace py = pybind11;

namespace specbranch {
namespace {

void philox_block(int64_t seed, int64_t position, uint32_t lane, int32_t purpose, py::handle words_) {
  TensorArg words("words", words_, kUInt32, "[4]", kWritable);
  words.sizes({4});
  const PhiloxBlock block = philox_at(seed, position, lane, purpose);
  for (int i = 0; i < 4; ++i) words.data<uint32_t>()[i] = block.word[i];
}

void gumbel_row(int64_t seed, int64_t position, py::handle noise_) {
  TensorArg noise("noise", noise_, kFloat32, "[V]", kWritable);
  for (int64_t token = 0; token < noise.size(0); ++token)
    noise.data<float>()[token] = gumbel_noise(seed, position, token);
}

template <float (*function)(float)>
void apply(py::handle in_, py::handle out_) {
  TensorArg in("in", in_, kFloat32, "[n]");
  TensorArg out("out", out_, kFloat32, "[n]", kWritable);
  out.sizes({in.size(0)});
  for (int64_t i = 0; i < in.size(0); ++i) out.data<float>()[i] = function(in.data<float>()[i]);
}

void simt_mma(py::handle a_, py::handle b_, bool transposed, int order, py::handle c_) {
  TensorArg a("a", a_, kBFloat16 | kFloat16, "[16, 16]"), b("b", b_, a.type(), "[n, k]");
  TensorArg c("c", c_, kFloat32, "[16, 8]", kWritable);
  a.sizes({16, 16});
  b.sizes({transposed ? 16 : 8, transposed ? 8 : 16});
  c.sizes({16, 8});
  simt::product_by_mma(a.dtype(), a.data(), b.data(), transposed, static_cast<simt::Order>(order), c.data<float>());
}

float exp_value(float x) { return exp_nonpositive(x); }
float log_value(float x) { return log_positive(x); }
float log1p_value(float u) { return log1p_negative(u); }

}  // namespace

void register_probes(py::module_& m) {
  py::module_ probe = m.def_submodule("probe", "Random source and arithmetic, for tests.");
  probe.def("philox_block", &philox_block);
  probe.def("uniform", [](int64_t seed, int64_t position, uint32_t lane, int32_t purpose) {
    return uniform(seed, position, lane, purpose);
  });
  probe.def("gumbel_row", &gumbel_row);
  probe.def("simt_run",
            [](const std::string& name, int order) { return simt::run_probe(name, static_cast<simt::Order>(order)); });
  probe.def("simt_sum", [](const std::vector<float>& values, unsigned threads, int order) {
    return simt::sum_on_grid(values, threads, static_cast<simt::Order>(order));
  });
  probe.def("simt_mma", &simt_mma);
  probe.def("exp_nonpositive", &apply<exp_value>);
  probe.def("log_positive", &apply<log_value>);
  probe.def("log1p_negative", &apply<log1p_value>);
}

}  // namespace specbranch
