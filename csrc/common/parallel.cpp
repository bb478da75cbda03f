#include "common/parallel.h"

#include <algorithm>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace specbranch::cpu {
namespace {

constexpr int kSpins = 2000;                  // some ten microseconds
constexpr double kMicrosecondsPerThread = 5;  // a few times what it takes to start a spinning thread

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

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

Membership& membership() {
  thread_local Membership member;
  return member;
}

void Team::meet() {
  const int round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();  // another program may have the core that we wait for
    }
  }
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
