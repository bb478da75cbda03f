#include "stopwatch/stopwatch.cuh"

namespace specbranch::cuda {
void stopwatch(const StopwatchParams& p, void* stream) { run_stopwatch(p, static_cast<Stream>(stream)); }
}  // namespace specbranch::cuda
