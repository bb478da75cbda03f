// times[0] += now - times[1] at the end of a stretch of work, times[1] = now at its beginning; nanoseconds.
// Layout: see StopwatchParams. Work: one thread. Bound: by latency. What it measures is the time between two points of
// a stream, waits included, by a clock that all multiprocessors share (its resolution is the driver's: about 1 us or
// better). It exists because events inside a graph cannot be read while the next replay records them anew.
#pragma once

#include "common/gpu.h"
#include "stopwatch/clock.h"

namespace specbranch::SB_GPU {

__device__ inline int64_t now() {
#if defined(__CUDA_ARCH__)
  int64_t nanoseconds;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
  return nanoseconds;
#elif defined(__CUDACC__)
  return 0;  // nvcc's host pass, which never runs it
#else
  return host_nanoseconds();
#endif
}

__global__ void stopwatch_kernel(StopwatchParams p) {
  const int64_t time = now();
  if (p.start) {
    p.times[1] = time;
  } else {
    p.times[0] += time - p.times[1];
  }
}

inline void run_stopwatch(const StopwatchParams& p, Stream stream) {
  launch(stopwatch_kernel, dim3(1), dim3(1), 0, stream, p);
}

}  // namespace specbranch::SB_GPU
