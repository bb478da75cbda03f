// The scheduler of the emulated block: fibers, barriers, warp collectives. See simt.h.
//
// A fiber is a stack and a saved stack pointer. On x86-64 a switch saves the six registers that a call must keep; on
// other processors ucontext does it. Stacks are mapped once and reused; they start a little apart from each other,
// or all frames of a block would fall into the same cache sets.
#include "simt/simt.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace specbranch::simt {
namespace {

constexpr size_t kStackBytes = 128 * 1024, kStagger = 192;
constexpr unsigned kMaxThreads = 1024;

void enter_fiber();

#if defined(__x86_64__)
struct Context {
  void* stack_pointer = nullptr;
};

__attribute__((naked, noinline)) void switch_stacks(void** /*save: rdi*/, void* /*load: rsi*/) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n\t"
      "ret");
}

void make_context(Context* context, char* stack, size_t bytes) {
  // Top of the stack: a null return address for enter_fiber (which aligns its frame), enter_fiber, six registers.
  void** top = reinterpret_cast<void**>(stack + bytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&enter_fiber);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context->stack_pointer = top;
}

void switch_context(Context* from, Context* to) { switch_stacks(&from->stack_pointer, to->stack_pointer); }
#else
struct Context {
  ucontext_t context;
};

void make_context(Context* context, char* stack, size_t bytes) {
  getcontext(&context->context);
  context->context.uc_stack.ss_sp = stack;
  context->context.uc_stack.ss_size = bytes;
  context->context.uc_link = nullptr;
  makecontext(&context->context, &enter_fiber, 0);
}

void switch_context(Context* from, Context* to) { swapcontext(&from->context, &to->context); }
#endif

enum class State { kReady, kAtBarrier, kAtCollective, kEnded };

struct Fiber {
  Context context;
  dim3 index;
  State state = State::kReady;
  Site site{};
  // What the fiber brings to where it waits, and what it leaves with.
  uint32_t mask = 0;
  uint64_t value = 0, result = 0;
  int source = -1;  // lane a shuffle reads; -1: a ballot
  Combine combine = Combine::kNone;
};

std::string where(const Site& site) {
  const std::string file = site.file;
  return std::string(site.what) + " at " + file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(site.line);
}

bool same(const Site& a, const Site& b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

class Block {
 public:
  Block() : fibers_(kMaxThreads), stacks_(map_stacks()) {}

  void run(Order order, unsigned num_threads, const Body& body) {
    body_ = &body;
    count_ = num_threads;
    std::vector<unsigned> sequence(num_threads);
    std::iota(sequence.begin(), sequence.end(), 0u);
    if (order == Order::kReverse) std::reverse(sequence.begin(), sequence.end());
    std::mt19937 random(num_threads + 7 * blockIdx.x + 1);  // the same order in every run
    if (order == Order::kRandom) std::shuffle(sequence.begin(), sequence.end(), random);
    start();
    while (run_ready(sequence)) {
      if (order == Order::kRandom) std::shuffle(sequence.begin(), sequence.end(), random);
      if (!release_warps() && !release_barrier()) fail();
    }
  }

  Fiber& current() { return fibers_[current_]; }
  unsigned current_thread() const { return current_; }

  void wait(State state) {
    current().state = state;
    switch_context(&current().context, &scheduler_);
  }

  [[noreturn]] void run_fiber() {
    (*body_)();
    wait(State::kEnded);
    __builtin_unreachable();
  }

 private:
  static char* map_stacks() {
    const size_t bytes = kMaxThreads * kStackBytes;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("simt: no memory for the stacks of a block");
    return static_cast<char*>(memory);
  }

  void start() {
#if defined(__SANITIZE_ADDRESS__)
    // Frames of the block before are gone, those of one that failed were never left.
    ASAN_UNPOISON_MEMORY_REGION(stacks_, count_ * kStackBytes);
#endif
    for (unsigned t = 0; t < count_; ++t) {
      const size_t offset = t % 64 * kStagger / 16 * 16;
      fibers_[t].state = State::kReady;
      fibers_[t].index = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y);
      make_context(&fibers_[t].context, stacks_ + t * kStackBytes, kStackBytes - offset);
    }
  }

  // Lets every fiber that can run do so until it waits. False: all have ended.
  bool run_ready(const std::vector<unsigned>& sequence) {
    bool waiting = false;
    for (const unsigned t : sequence) {
      if (fibers_[t].state == State::kReady) {
        current_ = t;
        threadIdx = fibers_[t].index;
        switch_context(&scheduler_, &fibers_[t].context);
      }
      waiting |= fibers_[t].state != State::kEnded;
    }
    return waiting;
  }

  bool release_warps() {
    bool released = false;
    for (unsigned first = 0; first < count_; first += warpSize)
      for (unsigned lane = 0; lane < warpSize && first + lane < count_; ++lane)
        if (fibers_[first + lane].state == State::kAtCollective) released |= release_group(first, first + lane);
    return released;
  }

  // The lanes that the collective of fiber `t` names, if all have come to it.
  bool release_group(unsigned first, unsigned t) {
    const Fiber& leader = fibers_[t];
    const uint32_t mask = leader.mask;
    uint32_t ballot = 0;
    for (unsigned lane = 0; lane < warpSize; ++lane) {
      if (!(mask >> lane & 1u)) continue;
      if (first + lane >= count_) return false;
      const Fiber& fiber = fibers_[first + lane];
      if (fiber.state != State::kAtCollective || fiber.mask != mask || !same(fiber.site, leader.site)) return false;
      ballot |= static_cast<uint32_t>(fiber.value & 1u) << lane;
    }
    for (unsigned lane = 0; lane < warpSize; ++lane) {
      if (!(mask >> lane & 1u)) continue;
      Fiber& fiber = fibers_[first + lane];
      if (fiber.source >= 0 && !(mask >> fiber.source & 1u)) {
        throw std::runtime_error("simt: " + name(first + lane) + " reads lane " + std::to_string(fiber.source) +
                                 ", which takes no part, in " + where(fiber.site));
      }
      fiber.result = fiber.source >= 0 ? fibers_[first + static_cast<unsigned>(fiber.source)].value : ballot;
    }
    for (unsigned lane = 0; lane < warpSize; ++lane)
      if (mask >> lane & 1u) fibers_[first + lane].state = State::kReady;
    return true;
  }

  bool release_barrier() {
    uint64_t num_true = 0;
    for (unsigned t = 0; t < count_; ++t) {
      if (fibers_[t].state != State::kAtBarrier || !same(fibers_[t].site, fibers_[0].site)) return false;
      num_true += fibers_[t].value;
    }
    for (unsigned t = 0; t < count_; ++t) {
      const Combine combine = fibers_[t].combine;
      fibers_[t].result = combine == Combine::kAnd  ? num_true == count_
                          : combine == Combine::kOr ? num_true > 0
                                                    : num_true;
      fibers_[t].state = State::kReady;
    }
    return true;
  }

  std::string name(unsigned t) const {
    return "thread " + std::to_string(t) + " of block " + std::to_string(blockIdx.x) +
           (blockIdx.y + blockIdx.z > 0 ? "," + std::to_string(blockIdx.y) + "," + std::to_string(blockIdx.z) : "");
  }

  // Nobody can go on: says who waits where, in runs of threads that do alike.
  [[noreturn]] void fail() const {
    std::string message = "simt: block " + name(0).substr(name(0).find("block ") + 6) + " hangs:";
    for (unsigned t = 0; t < count_;) {
      unsigned end = t + 1;
      while (end < count_ && describe(fibers_[end]) == describe(fibers_[t])) ++end;
      message += (t == 0 ? " threads " : "; threads ") + std::to_string(t) + ".." + std::to_string(end - 1) + " " +
                 describe(fibers_[t]);
      t = end;
    }
    throw std::runtime_error(message);
  }

  static std::string describe(const Fiber& fiber) {
    if (fiber.state == State::kEnded) return "have ended";
    std::string text = "wait in " + where(fiber.site);
    if (fiber.state == State::kAtCollective) {
      char mask[16];
      std::snprintf(mask, sizeof(mask), "%08x", fiber.mask);
      text += std::string(" (mask ") + mask + ")";
    }
    return text;
  }

  std::vector<Fiber> fibers_;
  char* stacks_;
  Context scheduler_;
  const Body* body_ = nullptr;
  unsigned count_ = 0, current_ = 0;
};

Block& the_block() {
  static Block* block = new Block;  // never destroyed: its stacks may be in use when the process ends
  return *block;
}

void enter_fiber() { the_block().run_fiber(); }

char* shared_memory(size_t bytes) {
  static std::vector<char> storage;
#if defined(__SANITIZE_ADDRESS__)
  std::vector<char>().swap(storage);  // exactly as large as asked for, so that its end is guarded
#endif
  storage.assign(bytes + 128, static_cast<char>(0xCD));
  const auto address = reinterpret_cast<uintptr_t>(storage.data());
  const size_t offset = (128 - address % 128) % 128;
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(storage.data() + offset + bytes, 128 - offset);
#endif
  return storage.data() + offset;
}

void* dynamic_memory = nullptr;

}  // namespace

void* dynamic_shared() { return dynamic_memory; }

void run_grid(Order order, dim3 grid, dim3 block, size_t shared_bytes, const Body& body) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  const uint64_t threads = uint64_t{block.x} * block.y * block.z, blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > kMaxThreads || blocks == 0 || grid.y > 65535 || grid.z > 65535) {
    throw std::runtime_error("simt: a launch of " + std::to_string(blocks) + " blocks of " + std::to_string(threads) +
                             " threads; must be at least 1 block of 1 to 1024 threads");
  }
  if (shared_bytes > 227 * 1024) throw std::runtime_error("simt: more than 227 KB of dynamic shared memory");
  gridDim = grid;
  blockDim = block;
  std::vector<uint64_t> sequence(blocks);
  std::iota(sequence.begin(), sequence.end(), uint64_t{0});
  if (order == Order::kReverse) std::reverse(sequence.begin(), sequence.end());
  if (order == Order::kRandom) std::shuffle(sequence.begin(), sequence.end(), std::mt19937_64(blocks));
  for (const uint64_t b : sequence) {
    blockIdx = dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                    static_cast<unsigned>(b / grid.x / grid.y));
    dynamic_memory = shared_memory(shared_bytes);
    the_block().run(order, static_cast<unsigned>(threads), body);
  }
}

int lane_id() { return static_cast<int>(the_block().current_thread() % warpSize); }

int block_barrier(Site site, Combine combine, int predicate) {
  Fiber& fiber = the_block().current();
  fiber.site = site;
  fiber.combine = combine;
  fiber.value = predicate != 0;
  the_block().wait(State::kAtBarrier);
  return static_cast<int>(fiber.result);
}

uint64_t warp_exchange(Site site, uint32_t mask, uint64_t value, int source) {
  Fiber& fiber = the_block().current();
  fiber.site = site;
  fiber.mask = mask;
  fiber.value = value;
  fiber.source = source;
  the_block().wait(State::kAtCollective);
  return fiber.result;
}

uint32_t warp_ballot(Site site, uint32_t mask, bool predicate) {
  return static_cast<uint32_t>(warp_exchange(site, mask, predicate, -1));
}

}  // namespace specbranch::simt
