// The CUDA device, for the bindings: plain C++, implemented in device.cu.
#pragma once

namespace specbranch::cuda {

// Throws "no NVIDIA driver found" and the like, in one line, where nothing could run.
void require_driver();

// Makes a device the current one, and the former one again at the end.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = -1;
};

}  // namespace specbranch::cuda
