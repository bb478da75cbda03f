// The decoder: weights are checked and kept once, a forward passes what changes.
#include <vector>

#include "bindings.h"
#include "bindings_checks.h"
#include "common/tensor_arg.h"
#include "ops.h"

namespace py = pybind11;

namespace specbranch {
namespace {

class Decoder {
 public:
  // layers: tuples (input_norm, qkv, qkv_bias, q_norm, k_norm, out, out_bias, mlp_norm, gate_up, gate_up_bias, down,
  // down_bias).
  Decoder(const py::list& layers, py::handle final_norm, py::handle cos, py::handle sin, int64_t Hq, int64_t Hkv,
          int64_t D, int64_t F, float eps) {
    TensorArg norm("final_norm", final_norm, kFloating, "[d]");
    type_ = norm.type();
    p_.dtype = norm.dtype();
    p_.width = norm.size(0);
    p_.L = static_cast<int64_t>(layers.size()), p_.Hq = Hq, p_.Hkv = Hkv, p_.D = D, p_.F = F, p_.eps = eps;
    if (Hkv < 1 || Hq % Hkv != 0) throw py::value_error("num_q_heads must be a multiple of num_kv_heads");
    p_.final_norm = keep(final_norm, norm);
    TensorArg cos_table("cos_table", cos, kFloat32, "[P, D / 2]"), sin_table("sin_table", sin, kFloat32, "[P, D / 2]");
    p_.P = cos_table.size(0);
    cos_table.sizes({p_.P, D / 2});
    sin_table.sizes({p_.P, D / 2});
    p_.cos_table = static_cast<const float*>(keep(cos, cos_table));
    p_.sin_table = static_cast<const float*>(keep(sin, sin_table));
    for (const py::handle& item : layers) layers_.push_back(layer(item.cast<py::tuple>()));
    p_.layers = layers_.data();
  }

  void forward(py::handle residual_, py::handle cache_, py::handle positions_, py::handle slots_, py::handle prefix_,
               py::handle bits_, float scale, py::handle hidden_, py::handle out_) const {
    DecoderParams p = p_;
    TensorArg residual("residual", residual_, type_, "[N, d]", kWritable);
    TensorArg cache("cache", cache_, type_, "[L, 2, 1, Hkv, S, D]", kWritable);
    TensorArg positions("positions", positions_, kInt32, "[1, N]");
    TensorArg slots("slots", slots_, kInt32, "[1, N]");
    TensorArg prefix("prefix_length", prefix_, kInt32, "[1]");
    TensorArg bits("ancestor_bits", bits_, kInt32 | kUInt32, "[1, N, ceil(T / 32)]", kOptional);
    TensorArg hidden("hidden", hidden_, type_, "[N, K, d]", kOptional | kWritable);
    TensorArg out("out", out_, type_, "[N, d]", kWritable);
    p.N = residual.size(0), p.S = cache.size(4), p.W = bits.given() ? bits.size(2) : 0;
    p.K = hidden.given() ? hidden.size(1) : 0;
    residual.sizes({p.N, p.width});
    cache.sizes({p.L, 2, 1, p.Hkv, p.S, p.D});
    positions.sizes({1, p.N});
    slots.sizes({1, p.N});
    prefix.sizes({1});
    bits.sizes({1, p.N, p.W});
    hidden.sizes({p.N, p.K, p.width});
    out.sizes({p.N, p.width});
    if (p.K > p.L) hidden.fail_value("had more layers than the " + std::to_string(p.L) + " of the decoder");
    check_positions(positions, p.P);
    check_slots(slots, p.S);
    check_prefix(prefix, p.N, p.S);
    if (bits.given()) check_bits(bits, prefix, p.S);
    p.scale = scale;
    p.residual = residual.data(), p.cache = cache.data(), p.positions = positions.data<int32_t>();
    p.slots = slots.data<int32_t>(), p.prefix_length = prefix.data<int32_t>(), p.ancestor_bits = bits.data<uint32_t>();
    p.hidden = hidden.data(), p.out = out.data();
    py::gil_scoped_release release;
    cpu::decoder(p);
  }

 private:
  // The memory of a tensor that lives as long as this object.
  const void* keep(py::handle object, const TensorArg& tensor) {
    if (tensor.given()) kept_.push_back(py::reinterpret_borrow<py::object>(object));
    return tensor.data();
  }

  const void* vector(const char* name, py::handle object, int64_t size) {
    TensorArg tensor(name, object, type_, "[n]", kOptional);
    tensor.sizes({size});
    return keep(object, tensor);
  }

  DecoderLinear matrix(const char* name, py::handle weight_, py::handle bias, int64_t inputs, int64_t outputs) {
    TensorArg weight(name, weight_, kFloat32 | kBFloat16, "[ceil(N / 16), K, 16]");
    weight.sizes({(outputs + 15) / 16, inputs, 16});
    return {weight.dtype(), keep(weight_, weight), vector(name, bias, outputs)};
  }

  DecoderLayer layer(const py::tuple& w) {
    const int64_t d = p_.width, queries = p_.Hq * p_.D, heads = queries + 2 * p_.Hkv * p_.D;
    if (w.size() != 12) throw py::value_error("layers had a tuple of another length than 12");
    return {vector("input_norm", w[0], d),
            matrix("qkv", w[1], w[2], d, heads),
            vector("q_norm", w[3], p_.D),
            vector("k_norm", w[4], p_.D),
            matrix("out", w[5], w[6], queries, d),
            vector("mlp_norm", w[7], d),
            matrix("gate_up", w[8], w[9], d, 2 * p_.F),
            matrix("down", w[10], w[11], p_.F, d)};
  }

  DecoderParams p_{};
  Types type_;
  std::vector<DecoderLayer> layers_;
  std::vector<py::object> kept_;
};

}  // namespace

void register_decoder(py::module_& m) {
  py::class_<Decoder>(m, "Decoder")
      .def(py::init<const py::list&, py::handle, py::handle, py::handle, int64_t, int64_t, int64_t, int64_t, float>())
      .def("forward", &Decoder::forward);
}

}  // namespace specbranch
