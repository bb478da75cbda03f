#include "common/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif

namespace specbranch::cpu {
namespace {

constexpr double kMicrosecondsPerThread = 2;  // a few times what it takes for a spinning helper to hear of a loop
constexpr int kSpins = 4000;                  // pauses: about 50 microseconds before a helper sleeps, or a wait yields

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

bool forked = false;
thread_local int thread_limit = 0;
thread_local bool inside = false;  // within a task

// Once, at load: a child runs everything on its one thread.
const bool registered = [] {
#if defined(__unix__) || defined(__APPLE__)
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif
  return true;
}();

int num_cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// The loop that helpers and caller share. `ticket_` is its number (high half) and the next task (low half): a claim is
// a compare-and-swap, which fails for a helper that looked at an earlier loop. The other members change only while no
// task can be claimed.
class Loop {
 public:
  static constexpr uint64_t kClosed = 0xFFFFFFFFu;

  void open(int64_t tasks, int helpers, void (*call)(const void*, int64_t), const void* context) {
    const uint64_t number = ((ticket_.load(std::memory_order_relaxed) >> 32) + 1) << 32;
    ticket_.store(number | kClosed, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    tasks_.store(static_cast<uint64_t>(tasks), std::memory_order_relaxed);
    helpers_.store(helpers, std::memory_order_relaxed);
    call_.store(call, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(number, std::memory_order_seq_cst);
  }

  uint64_t ticket() const { return ticket_.load(std::memory_order_seq_cst); }

  // Runs tasks while there are any to claim. `helper`: its number, -1 the caller.
  void work(int helper) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (;;) {
      // Who reads a member of a later loop has also seen that the loop before was closed: the claim below fails then.
      const auto call = call_.load(std::memory_order_acquire);
      const void* context = context_.load(std::memory_order_acquire);
      const uint64_t task = ticket & kClosed;
      if (task >= tasks_.load(std::memory_order_acquire) || helper >= helpers_.load(std::memory_order_acquire)) return;
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire))
        continue;
      call(context, static_cast<int64_t>(task));
      done_.fetch_add(1, std::memory_order_release);
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  bool is_done() const { return done_.load(std::memory_order_acquire) == tasks_.load(std::memory_order_relaxed); }

 private:
  alignas(64) std::atomic<uint64_t> ticket_{kClosed};
  alignas(64) std::atomic<uint64_t> done_{0};
  alignas(64) std::atomic<uint64_t> tasks_{0};
  std::atomic<int> helpers_{0};
  std::atomic<void (*)(const void*, int64_t)> call_{nullptr};
  std::atomic<const void*> context_{nullptr};
};

// The helpers of one thread.
class Pool {
 public:
  ~Pool() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ends_.store(true);
    }
    wake_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
  }

  void run(int64_t tasks, int threads, void (*call)(const void*, int64_t), const void* context) {
    while (static_cast<int>(helpers_.size()) < threads - 1) {
      const int number = static_cast<int>(helpers_.size());
      helpers_.emplace_back([this, number] { help(number); });
    }
    loop_.open(tasks, threads - 1, call, context);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
      }
      wake_.notify_all();
    }
    inside = true;
    loop_.work(-1);
    inside = false;
    for (int spins = 0; !loop_.is_done(); ++spins) {
      if (spins < kSpins) {
        pause();
      } else {
        std::this_thread::yield();  // a helper lost its core in the middle of a task
      }
    }
  }

 private:
  void help(int number) {
    inside = true;
    uint64_t seen = 0;
    while (!ends_.load()) {
      loop_.work(number);
      seen = loop_.ticket() >> 32;
      int spins = 0;
      while (loop_.ticket() >> 32 == seen && !ends_.load(std::memory_order_relaxed) && spins < kSpins) {
        pause();
        ++spins;
      }
      if (spins == kSpins) sleep(seen);
    }
  }

  void sleep(uint64_t seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    sleeping_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return loop_.ticket() >> 32 != seen || ends_.load(); });
    sleeping_.fetch_sub(1, std::memory_order_seq_cst);
  }

  Loop loop_;
  std::vector<std::thread> helpers_;
  std::atomic<int> sleeping_{0};
  std::atomic<bool> ends_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
};

// A forked child has the object, but not the threads that its end would wait for.
struct KeepInChild {
  void operator()(Pool* pool) const {
    if (!forked) delete pool;
  }
};

}  // namespace

int limit_threads(int count) {
  const int before = thread_limit;
  thread_limit = count;
  return before;
}

int threads_for(int64_t tasks, double microseconds) {
  const double useful = std::min<double>(microseconds / kMicrosecondsPerThread, static_cast<double>(tasks));
  if (useful < 2 || thread_limit == 1 || inside || forked || !registered) return 1;
  static const int cores = num_cores();
  return static_cast<int>(std::min<double>(useful, thread_limit > 0 ? thread_limit : cores));
}

void share(int64_t tasks, int threads, void (*call)(const void*, int64_t), const void* context) {
  thread_local std::unique_ptr<Pool, KeepInChild> pool(new Pool);
  pool->run(tasks, threads, call, context);
}

}  // namespace specbranch::cpu
