// Threads on the CPU: OpenMP where it is present, never in a forked child (libgomp's threads do not survive fork(), and
// a child of a process that ran a parallel region would hang), never for work below the cost of waking a thread.
#pragma once

#include <atomic>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace specbranch::cpu {

// The most threads that ops called from this thread may use, 0 for all that OpenMP has; returns the limit before. Two
// lanes that run at the same time share the cores by it.
int limit_threads(int count);

// How many threads to use for `tasks` independent tasks of `microseconds` in all.
int threads_for(int64_t tasks, double microseconds);

// Threads that run the same sequence of ops together and meet after each. Its own barrier, as it is passed dozens of
// times a forward: an eighth of what OpenMP's costs.
class Team {
 public:
  explicit Team(int threads) : threads_(threads) {}

  // This thread's part of `tasks`: [first, last).
  int64_t begin_of(int thread, int64_t tasks) const { return tasks * thread / threads_; }

  // Returns when all threads have called it.
  void meet();

 private:
  const int threads_;
  std::atomic<int> arrived_{0}, round_{0};
};

// The team that this thread is one of, and its number in it; nullptr: none.
struct Membership {
  Team* team = nullptr;
  int thread = 0;
};
Membership& membership();

// Runs task(i) for i in [0, tasks). Within a team all its threads call this, share the tasks, and go on when all are
// done.
template <typename Task>
void parallel_for(int64_t tasks, double microseconds, const Task& task) {
  if (const Membership& member = membership(); member.team != nullptr) {
    const int64_t last = member.team->begin_of(member.thread + 1, tasks);
    for (int64_t i = member.team->begin_of(member.thread, tasks); i < last; ++i) task(i);
    member.team->meet();
    return;
  }
  const int threads = threads_for(tasks, microseconds);
  if (threads <= 1) {
    for (int64_t i = 0; i < tasks; ++i) task(i);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t i = 0; i < tasks; ++i) task(i);
}

// Runs work(), a sequence of ops, on each thread of a team of `threads`. What work() does outside parallel_for, every
// thread does for itself.
template <typename Work>
void run_team(int threads, const Work& work) {
  if (threads <= 1 || membership().team != nullptr) return work();
#ifdef _OPENMP
  Team* team = nullptr;
#pragma omp parallel num_threads(threads)
  {
    // OpenMP may start fewer threads than were asked for.
#pragma omp single
    team = new Team(omp_get_num_threads());
    membership() = {team, omp_get_thread_num()};
    work();
    membership() = {};
  }
  delete team;
#else
  work();
#endif
}

}  // namespace specbranch::cpu
