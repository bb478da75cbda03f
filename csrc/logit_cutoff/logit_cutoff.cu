#include "logit_cutoff/logit_cutoff.cuh"

namespace specbranch::cuda {
void logit_cutoff(const LogitCutoffParams& p, void* stream) { run_logit_cutoff(p, static_cast<Stream>(stream)); }
}  // namespace specbranch::cuda
