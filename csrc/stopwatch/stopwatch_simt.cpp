#include "stopwatch/stopwatch.cuh"

namespace specbranch::simt {
void stopwatch(const StopwatchParams& p, Order order) { run_stopwatch(p, order); }
}  // namespace specbranch::simt
