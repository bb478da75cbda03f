#include "logit_cutoff/logit_cutoff.cuh"

namespace specbranch::simt {
void logit_cutoff(const LogitCutoffParams& p, Order order) { run_logit_cutoff(p, order); }
}  // namespace specbranch::simt
