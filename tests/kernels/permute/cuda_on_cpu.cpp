// The run time of cuda_on_cpu.h.

#include "cuda_on_cpu.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

extern "C" char __start_shared_memory[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_shared_memory[] __attribute__((weak, visibility("hidden")));

Dim threadIdx, blockIdx;

namespace {

struct Range {
  std::uintptr_t begin, end;
};
struct Barrier {
  unsigned arrived = 0, passed = 0;
};
struct Warp {
  Barrier barrier;
  unsigned slots[2][32];
};
struct Thread {
  ucontext_t context;
  std::vector<char> stack;
  bool finished = false;
};

std::vector<Range> readable;
std::vector<Thread> threads;
std::vector<Warp> warps;
Barrier block_barrier;
ucontext_t scheduler;
unsigned running;
bool progress;
void (*kernel)(const long long*);
const long long* kernel_arguments;
char error[200];

void note(const char* what) {
  std::snprintf(error, sizeof error, "block %u, thread %u: %s", blockIdx.x, threadIdx.x, what);
}

void wait() { swapcontext(&threads[running].context, &scheduler); }

void arrive(Barrier& barrier, unsigned expected) {
  const unsigned mine = barrier.passed;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.passed;
    progress = true;
  }
  while (barrier.passed == mine) wait();
}

void body() {
  kernel(kernel_arguments);
  threads[running].finished = true;
  progress = true;
  wait();
}

void run_block(const std::vector<unsigned>& order) {
  if (__start_shared_memory)
    std::memset(__start_shared_memory, 0xcd, __stop_shared_memory - __start_shared_memory);
  block_barrier = {};
  warps.assign(threads.size() / 32, {});
  for (Thread& t : threads) {
    t.finished = false;
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.data();
    t.context.uc_stack.ss_size = t.stack.size();
    makecontext(&t.context, body, 0);
  }
  for (std::size_t left = threads.size(); left;) {
    progress = false;
    for (unsigned t : order) {
      if (threads[t].finished) continue;
      running = t;
      threadIdx.x = t;
      swapcontext(&scheduler, &threads[t].context);
      if (*error) return;
      left -= threads[t].finished;
    }
    if (!progress) return note("everybody waits");
  }
}

} // namespace

namespace cpu {

void fail(const char* what) {
  note(what);
  setcontext(&scheduler);
  std::abort();
}

void check_read(const void* from, unsigned long size) {
  const std::uintptr_t at = reinterpret_cast<std::uintptr_t>(from);
  if (at % size) fail("a misaligned read");
  for (const Range& r : readable)
    if (r.begin <= at && at + size <= r.end) return;
  fail("a read outside the input");
}

const unsigned* exchange(unsigned value) {
  Warp& warp = warps[running / 32];
  // Two rows of slots: a lane may be one exchange ahead of those that still read.
  unsigned* slots = warp.slots[warp.barrier.passed % 2];
  slots[running % 32] = value;
  arrive(warp.barrier, 32);
  return slots;
}

void wait_for_block() { arrive(block_barrier, threads.size()); }

const char* run(void (*call)(const long long*), const long long* arguments, unsigned blocks,
                unsigned threads_a_block, unsigned seed) {
  kernel = call;
  kernel_arguments = arguments;
  threads.resize(threads_a_block);
  for (Thread& t : threads) t.stack.resize(64 << 10);
  std::vector<unsigned> order(threads_a_block), block_order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::iota(block_order.begin(), block_order.end(), 0u);
  std::mt19937 random(seed);
  if (seed) std::shuffle(order.begin(), order.end(), random);
  if (seed) std::shuffle(block_order.begin(), block_order.end(), random);
  *error = 0;
  for (unsigned b : block_order) {
    blockIdx.x = b;
    run_block(order);
    if (*error) break;
  }
  return error;
}

} // namespace cpu

// `ranges` are pairs of a first address and a size in bytes.
extern "C" void set_readable(const long long* ranges, int count) {
  readable.clear();
  for (int i = 0; i < count; ++i) {
    const auto begin = static_cast<std::uintptr_t>(ranges[2 * i]);
    readable.push_back({begin, begin + static_cast<std::uintptr_t>(ranges[2 * i + 1])});
  }
}
