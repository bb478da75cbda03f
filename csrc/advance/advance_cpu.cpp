// advance on the CPU: see advance.h. A few dozen integers a row: latency bound, no threads.
#include "advance/advance.h"

namespace specbranch::cpu {

void advance(const AdvanceParams& p) {
  for (int64_t b = 0; b < p.B; ++b) {
    advance_row(p, b);
    next_inputs(p, b);
  }
  ++*p.round;
}

}  // namespace specbranch::cpu
