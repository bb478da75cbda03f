#include "common/parallel.h"

#include <algorithm>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace specbranch::cpu {
namespace {

constexpr double kMicrosecondsPerThread = 5;  // a few times what it takes to start a spinning thread

bool forked = false;
thread_local int thread_limit = 0;

// Once, at load: a child runs everything on its one thread.
const bool registered = [] {
#if defined(__unix__) || defined(__APPLE__)
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif
  return true;
}();

}  // namespace

int limit_threads(int count) {
  const int before = thread_limit;
  thread_limit = count;
  return before;
}

int threads_for(int64_t tasks, double microseconds) {
#ifdef _OPENMP
  if (forked || !registered || omp_in_parallel()) return 1;
  const double useful = std::min<double>(microseconds / kMicrosecondsPerThread, static_cast<double>(tasks));
  if (useful < 2 || thread_limit == 1) return 1;
  const int most = thread_limit > 0 ? thread_limit : omp_get_max_threads();
  return static_cast<int>(std::min<double>(useful, most));
#else
  (void)tasks, (void)microseconds;
  return 1;
#endif
}

}  // namespace specbranch::cpu
