// Bindings of the fused steps around a layer's matrix products. The pattern is explained in common/tensor_arg.h.
#include "bindings.h"
#include "bindings_checks.h"
#include "common/backend.h"
#include "common/tensor_arg.h"
#include "ops.h"

namespace py = pybind11;

namespace specbranch {

void check_weight(const TensorArg& weight, int64_t inputs, int64_t outputs) {
  weight.sizes({(outputs + 63) / 64, inputs + (weight.type() == kInt8 ? kScaleRows : 0), 64});
}

void check_positions(const TensorArg& positions, int64_t P) {
  const int32_t* values = positions.data<int32_t>();
  for (int64_t i = 0; i < positions.numel(); ++i) {
    if (values[i] < 0 || values[i] >= P) {
      positions.fail_element(i, "in 0.." + std::to_string(P - 1) + ", a row of the rotary tables");
    }
  }
}

namespace {

void rope_kv_write(py::handle qkv_, py::handle cos_, py::handle sin_, py::handle positions_, py::handle slots_,
                   py::handle cache_, int64_t Hq, py::handle q_norm_, py::handle k_norm_, float eps, py::handle out_,
                   py::handle backend_, py::handle stream_) {
  TensorArg qkv("qkv", qkv_, kFloating, "[B, N, (Hq + 2 Hkv) * D]", kAnyDevice);
  TensorArg cos("cos_table", cos_, kFloat32, "[P, D / 2]", kAnyDevice);
  TensorArg sin("sin_table", sin_, kFloat32, "[P, D / 2]", kAnyDevice);
  TensorArg positions("positions", positions_, kInt32, "[B, N]", kAnyDevice);
  TensorArg slots("slots", slots_, kInt32, "[B, N]", kAnyDevice);
  TensorArg cache("cache_layer", cache_, qkv.type(), "[2, B, Hkv, S, D]", kStrided | kWritable | kAnyDevice);
  TensorArg q_norm("q_norm", q_norm_, qkv.type(), "[D]", kOptional | kAnyDevice);
  TensorArg k_norm("k_norm", k_norm_, qkv.type(), "[D]", kOptional | kAnyDevice);
  TensorArg out("out", out_, qkv.type(), "[B, N, Hq, D]", kWritable | kAnyDevice);
  const int64_t B = qkv.size(0), N = qkv.size(1), Hkv = cache.size(2), S = cache.size(3), D = cache.size(4);
  const int64_t P = cos.size(0);
  if (D % 2 != 0) cache.fail_value("had heads of " + std::to_string(D) + " elements, must be an even number");
  if (Hq < 0) throw py::value_error("num_q_heads was " + std::to_string(Hq) + ", must not be negative");
  cache.sizes({2, B, Hkv, S, D});
  qkv.sizes({B, N, (Hq + 2 * Hkv) * D});
  cos.sizes({P, D / 2});
  sin.sizes({P, D / 2});
  positions.sizes({B, N});
  slots.sizes({B, N});
  q_norm.sizes({D});
  k_norm.sizes({D});
  out.sizes({B, N, Hq, D});
  const Backend backend(backend_, stream_, {&qkv, &cos, &sin, &positions, &slots, &cache, &q_norm, &k_norm, &out});
  if (backend.on_cpu()) {
    check_positions(positions, P);
    check_slots(slots, S);
  }
  RopeKvWriteParams params{B,
                           N,
                           Hq,
                           Hkv,
                           S,
                           D,
                           P,
                           qkv.dtype(),
                           eps,
                           qkv.data(),
                           q_norm.data(),
                           k_norm.data(),
                           cos.data<float>(),
                           sin.data<float>(),
                           positions.data<int32_t>(),
                           slots.data<int32_t>(),
                           cache_layer(cache),
                           out.data()};
  backend.run(static_cast<double>(qkv.numel()) * 5e-4, params, SB_BACKENDS(rope_kv_write));
}

void add_rms_norm(py::handle residual_, py::handle weight_, py::handle delta_, float eps, py::handle out_,
                  py::handle backend_, py::handle stream_) {
  TensorArg residual("residual", residual_, kFloating, "[rows, D]", kWritable | kAnyDevice);
  TensorArg weight("weight", weight_, residual.type(), "[D]", kAnyDevice);
  TensorArg delta("delta", delta_, residual.type(), "[rows, D]", kOptional | kAnyDevice);
  TensorArg out("out", out_, residual.type(), "[rows, D]", kWritable | kAnyDevice);
  const int64_t rows = residual.size(0), D = residual.size(1);
  weight.sizes({D});
  delta.sizes({rows, D});
  out.sizes({rows, D});
  const Backend backend(backend_, stream_, {&residual, &weight, &delta, &out});
  AddRmsNormParams params{rows, D, residual.dtype(), eps, delta.data(), weight.data(), residual.data(), out.data()};
  backend.run(static_cast<double>(rows * D) * 5e-4, params, SB_BACKENDS(add_rms_norm));
}

void silu_mul(py::handle gate_up_, py::handle out_, py::handle backend_, py::handle stream_) {
  TensorArg gate_up("gate_up", gate_up_, kFloating, "[rows, 2F]", kAnyDevice);
  TensorArg out("out", out_, gate_up.type(), "[rows, F]", kWritable | kAnyDevice);
  const int64_t rows = gate_up.size(0), F = gate_up.size(1) / 2;
  if (gate_up.size(1) % 2 != 0) {
    gate_up.fail_value("had " + std::to_string(gate_up.size(1)) + " columns, must have an even number, [rows, 2F]");
  }
  out.sizes({rows, F});
  const Backend backend(backend_, stream_, {&gate_up, &out});
  SiluMulParams params{rows, F, gate_up.dtype(), gate_up.data(), out.data()};
  backend.run(static_cast<double>(rows * F) * 1e-3, params, SB_BACKENDS(silu_mul));
}

void linear(py::handle x_, py::handle weight_, py::handle bias_, py::handle out_) {
  TensorArg x("x", x_, kFloating, "[rows, K]");
  TensorArg weight("weight", weight_, kWeights, kPackedShape);
  TensorArg bias("bias", bias_, x.type(), "[N]", kOptional);
  TensorArg out("out", out_, x.type(), "[rows, N]", kWritable);
  const int64_t rows = x.size(0), K = x.size(1), N = out.size(1);
  check_weight(weight, K, N);
  bias.sizes({N});
  out.sizes({rows, N});
  LinearParams params{rows, K, N, x.dtype(), weight.dtype(), x.data(), weight.data(), bias.data(), out.data()};
  run(linear_microseconds(params), [&] { cpu::linear(params); });
}

}  // namespace

void register_layer_ops(py::module_& m) {
  m.def("rope_kv_write", &rope_kv_write);
  m.def("add_rms_norm", &add_rms_norm);
  m.def("silu_mul", &silu_mul);
  m.def("linear", &linear);
}

}  // namespace specbranch
