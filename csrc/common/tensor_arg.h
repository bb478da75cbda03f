// Tensors in: torch tensors, NumPy arrays and anything else that speaks DLPack, zero-copy and without libtorch.
//
// How to bind an op (csrc/bindings_<group>.cpp): take py::handle parameters, make a TensorArg of each (its constructor
// checks dtype, number of dimensions, layout and device), compare sizes with `sizes`, fill the Params struct, run:
//
//   void silu_mul(py::handle gate_up_, py::handle out_) {
//     TensorArg gate_up("gate_up", gate_up_, kFloating, "[rows, 2F]");
//     TensorArg out("out", out_, gate_up.type(), "[rows, F]", kWritable);
//     const int64_t rows = gate_up.size(0), F = gate_up.size(1) / 2;
//     out.sizes({rows, F});
//     SiluMulParams params{rows, F, gate_up.dtype(), gate_up.data(), out.data()};
//     run(rows * F / 1e3, [&] { cpu::silu_mul(params); });     // estimated microseconds: big work drops the GIL
//   }
//   m.def("silu_mul", &silu_mul);                              // positional only: keywords cost time
//
// An optional argument is TensorArg with kOptional: None gives given() == false and data() == nullptr.
// A matrix with strided leading dimensions (logits) takes kStrided: only the last dimension must be contiguous.
// Inputs must be on the CPU unless the flag kAnyDevice is given. Errors name the argument, what it was and what it must
// be: TypeError for objects and dtypes, ValueError for the rest. TensorArgs must be made and destroyed with the GIL
// held.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>

#include "common/dlpack_abi.h"
#include "ops.h"

namespace specbranch {

// Element types, as a bit set, so that an argument can allow several.
using Types = uint32_t;
constexpr Types kFloat32 = 1, kBFloat16 = 2, kFloat16 = 4, kInt32 = 8, kInt64 = 16, kUInt8 = 32, kBool = 64;
constexpr Types kFloat64 = 128, kUInt16 = 256, kUInt32 = 512, kInt8 = 1024;
constexpr Types kFloating = kFloat32 | kBFloat16 | kFloat16;

// How an argument may look; 0 is a contiguous CPU input.
using Flags = uint32_t;
constexpr Flags kWritable = 1, kOptional = 2, kStrided = 4, kAnyDevice = 8;

class TensorArg {
 public:
  static constexpr int kMaxDims = 8;

  // `shape` is for messages and counts the dimensions: "[B, N]".
  TensorArg(const char* name, pybind11::handle object, Types allowed, const char* shape, Flags flags = 0);
  ~TensorArg();
  TensorArg(const TensorArg&) = delete;
  TensorArg& operator=(const TensorArg&) = delete;

  bool given() const { return given_; }
  int64_t size(int dim) const { return shape_[dim]; }
  int64_t stride(int dim) const { return strides_[dim]; }  // in elements
  int64_t numel() const;
  Types type() const { return type_; }
  DType dtype() const;  // floating types and int8 only
  bool on_cuda() const { return device_.type == dlpack::kCuda || device_.type == dlpack::kCudaManaged; }
  int device_id() const { return device_.id; }
  // The stream that the tensor's library is working on now (CUDA); nullptr, the default stream, where it does not tell.
  void* current_stream() const;

  template <typename T = void>
  T* data() const {
    return static_cast<T*>(data_);
  }

  // The argument (if given) must have exactly these sizes.
  void sizes(std::initializer_list<int64_t> expected) const;
  // The argument (if given) must be on the device of `other`.
  void same_device(const TensorArg& other) const;

  [[noreturn]] void fail_value(const std::string& message) const;
  // Names element `index` (in memory order) of an int32 argument: "parents had 7 at [0, 2], must be " + must_be.
  [[noreturn]] void fail_element(int64_t index, const std::string& must_be) const;
  [[noreturn]] void fail_type(const std::string& message) const;

 private:
  void import(pybind11::handle object);
  void read(const dlpack::Tensor& tensor);
  void import_buffer(pybind11::handle object);
  void import_capsule(pybind11::handle object, pybind11::object capsule);
  void check(Types allowed, Flags flags) const;
  void check_layout(Flags flags) const;
  [[noreturn]] void fail_import(pybind11::handle object) const;

  const char* name_;
  const char* letters_;
  bool given_ = false;
  bool read_only_ = false;
  bool has_buffer_ = false;
  int ndim_ = 0;
  Types type_ = 0;
  dlpack::Device device_{dlpack::kCpu, 0};
  void* data_ = nullptr;
  const dlpack::ExchangeApi* api_ = nullptr;
  pybind11::handle object_;
  int64_t shape_[kMaxDims];
  int64_t strides_[kMaxDims];
  Py_buffer buffer_;
  pybind11::object keep_alive_;
};

std::string type_name(Types types);

// Runs `work`; without the GIL where the estimate says that it is worth the two microseconds.
template <typename Work>
void run(double estimated_microseconds, Work work) {
  if (estimated_microseconds < 20) {
    work();
  } else {
    pybind11::gil_scoped_release release;
    work();
  }
}

}  // namespace specbranch
