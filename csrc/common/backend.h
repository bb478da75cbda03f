// Where an op runs: what its `backend` and `stream` arguments say, by default where its first tensor lives.
//
//   Backend backend(backend_, stream_, {&logits, &temperature, ...});   // all on the device of the first
//   if (backend.on_cpu()) check_values(...);                            // values are the host's to see
//   backend.run(microseconds, params, SB_BACKENDS(sample));
#pragma once

#include <initializer_list>
#include <string>

#include "common/tensor_arg.h"
#include "ops.h"
#if SPECBRANCH_WITH_CUDA
#include "common/device.h"
#define SB_BACKENDS(op) cpu::op, simt::op, cuda::op
#else
#define SB_BACKENDS(op) cpu::op, simt::op, nullptr
#endif

namespace specbranch {

class Backend {
 public:
  Backend(pybind11::handle name, pybind11::handle stream, std::initializer_list<const TensorArg*> tensors)
      : first_(**tensors.begin()), kind_(kind_of(name, first_)) {
    for (const TensorArg* tensor : tensors) tensor->same_device(first_);
    if (kind_ == Kind::kCuda) prepare_cuda(stream);
    if (on_cpu() && first_.on_cuda())
      first_.fail_value("was on cuda, must be on cpu for backend \"" + text(name) + "\"");
  }

  bool on_cpu() const { return kind_ != Kind::kCuda; }
  bool runs_kernels() const { return kind_ != Kind::kCpu; }  // emulated or not: they may want a workspace

  template <typename Params, typename OnCuda>
  void run(double microseconds, const Params& params, void (*on_cpu)(const Params&),
           void (*on_simt)(const Params&, simt::Order), [[maybe_unused]] OnCuda on_cuda) const {
    if (kind_ == Kind::kCpu) return specbranch::run(microseconds, [&] { on_cpu(params); });
    if (kind_ == Kind::kSimt) return on_simt(params, order_);
#if SPECBRANCH_WITH_CUDA
    const cuda::DeviceGuard guard(first_.device_id());
    on_cuda(params, stream_);
#endif
  }

 private:
  enum class Kind { kCpu, kSimt, kCuda };

  static std::string text(pybind11::handle name) { return name.is_none() ? "cpu" : name.cast<std::string>(); }

  Kind kind_of(pybind11::handle name, const TensorArg& first) {
    if (name.is_none()) return first.on_cuda() ? Kind::kCuda : Kind::kCpu;
    const std::string wanted = text(name);
    order_ = wanted == "simt:reverse"  ? simt::Order::kReverse
             : wanted == "simt:random" ? simt::Order::kRandom
                                       : simt::Order::kForward;
    if (wanted == "cpu") return Kind::kCpu;
    if (wanted == "cuda") return Kind::kCuda;
    if (wanted == "simt" || order_ != simt::Order::kForward) return Kind::kSimt;
    throw pybind11::value_error("backend was \"" + wanted +
                                "\", must be \"cpu\", \"simt\", \"simt:reverse\", \"simt:random\" or \"cuda\"");
  }

  void prepare_cuda([[maybe_unused]] pybind11::handle stream) {
#if SPECBRANCH_WITH_CUDA
    cuda::require_driver();
    if (!first_.on_cuda()) first_.fail_value("was on cpu, must be on cuda for backend \"cuda\"");
    stream_ = stream.is_none() ? first_.current_stream() : reinterpret_cast<void*>(stream.cast<uintptr_t>());
#else
    throw std::runtime_error("backend \"cuda\" is not in this build: rebuild with nvcc and SPECBRANCH_CUDA=ON");
#endif
  }

  const TensorArg& first_;
  simt::Order order_ = simt::Order::kForward;
  Kind kind_;
  void* stream_ = nullptr;
};

}  // namespace specbranch
