// Threads on the CPU. Each thread that calls ops has helpers of its own, who claim tasks of the running loop one by
// one; the caller claims as they do and waits for nothing but tasks that were claimed. Why not OpenMP: its loops end at
// a barrier of all threads, so that one whose core another program has at the moment stops everybody, for milliseconds,
// dozens of times a forward; and a loop costs 0.8 microseconds where many loops take five.
#pragma once

#include <cstdint>

namespace specbranch::cpu {

// The most threads that ops called from this thread may use, 0 for as many as there are cores; returns the limit
// before. Two lanes that run at the same time share the cores by it.
int limit_threads(int count);

// How many threads to use for `tasks` independent tasks of `microseconds` in all: never several within a task, within a
// forked child (which has no helpers), or for work that is done before a helper has heard of it.
int threads_for(int64_t tasks, double microseconds);

// Calls call(context, i) for i in [0, tasks) on this thread and its helpers, `threads` in all.
void share(int64_t tasks, int threads, void (*call)(const void*, int64_t), const void* context);

// Runs task(i) for i in [0, tasks), on several threads where it pays. No task may throw.
template <typename Task>
void parallel_for(int64_t tasks, double microseconds, const Task& task) {
  const int threads = threads_for(tasks, microseconds);
  if (threads <= 1) {
    for (int64_t i = 0; i < tasks; ++i) task(i);
    return;
  }
  share(tasks, threads, [](const void* context, int64_t i) { (*static_cast<const Task*>(context))(i); }, &task);
}

}  // namespace specbranch::cpu
