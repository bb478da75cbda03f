// The host's clock, for the backends that run there.
#pragma once

#include <chrono>
#include <cstdint>

namespace specbranch {

inline int64_t host_nanoseconds() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
}

}  // namespace specbranch
