// stopwatch on the CPU, where a call has ended when the next one begins.
#include "ops.h"
#include "stopwatch/clock.h"

namespace specbranch::cpu {

void stopwatch(const StopwatchParams& p) {
  const int64_t time = host_nanoseconds();
  if (p.start) {
    p.times[1] = time;
  } else {
    p.times[0] += time - p.times[1];
  }
}

}  // namespace specbranch::cpu
