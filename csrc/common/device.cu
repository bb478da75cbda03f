#include "common/device.h"
#include "common/launch.h"

namespace specbranch::cuda {

void require_driver() {
  int version = 0;
  // cudart's own message without a driver speaks of an insufficient version.
  if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) {
    throw std::runtime_error("no NVIDIA driver found");
  }
  int devices = 0;
  check(cudaGetDeviceCount(&devices), "CUDA");
  if (devices == 0) throw std::runtime_error("no CUDA device found");
}

DeviceGuard::DeviceGuard(int device) {
  int current = 0;
  check(cudaGetDevice(&current), "cudaGetDevice");
  if (current == device) return;
  check(cudaSetDevice(device), "cudaSetDevice");
  previous_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

}  // namespace specbranch::cuda
