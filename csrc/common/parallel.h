// Threads on the CPU: OpenMP where it is present, never in a forked child (libgomp's threads do not survive fork(), and
// a child of a process that ran a parallel region would hang), never for work below the cost of waking a thread.
#pragma once

#include <cstdint>

namespace specbranch::cpu {

// The most threads that ops called from this thread may use, 0 for all that OpenMP has; returns the limit before. Two
// lanes that run at the same time share the cores by it.
int limit_threads(int count);

// How many threads to use for `tasks` independent tasks of `microseconds` in all.
int threads_for(int64_t tasks, double microseconds);

// Runs task(i) for i in [0, tasks).
template <typename Task>
void parallel_for(int64_t tasks, double microseconds, const Task& task) {
  const int threads = threads_for(tasks, microseconds);
  if (threads <= 1) {
    for (int64_t i = 0; i < tasks; ++i) task(i);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t i = 0; i < tasks; ++i) task(i);
}

}  // namespace specbranch::cpu
