// Enough of a GPU for a host compiler to run kernels/matmul/weight_only/stream.cu.
//
// Threads of a cluster's blocks are coroutines that run until they wait for others, in an order of
// a seed, so that a missing barrier shows; clusters run one after another.  Shared memory is
// garbage before each block.  Reads of global memory are checked for alignment and against the
// ranges given.  Instructions are written from the PTX manual, not from the kernel.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#define LEAF static inline
#define __global__
#define __launch_bounds__(...)
#define __cluster_dims__(...)

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct Dim { unsigned x; };
static Dim threadIdx, blockIdx, gridDim;

namespace cpu {
struct Barrier { unsigned arrived = 0, passed = 0; };
struct Warp { Barrier barrier; float slots[2][32]; unsigned a[2][32][6]; };
struct Thread { ucontext_t context; std::vector<char> stack; bool finished; unsigned cluster; };
struct Block { std::vector<uint4> memory; Barrier barrier; std::vector<Warp> warps; };
struct Range { std::uintptr_t begin, end; };
static std::vector<Range> readable;
static std::vector<Thread> threads;
static std::vector<Block> blocks;
static Barrier cluster;
static ucontext_t scheduler;
static unsigned running, per_block;
static bool progress;
static char error[200];
static void (*kernel)(const long long*);
static const long long* arguments;

static void wait() { swapcontext(&threads[running].context, &scheduler); }
[[noreturn]] static void fail(const char* what) {
  std::snprintf(error, sizeof error, "block %u, thread %u: %s", blockIdx.x, threadIdx.x, what);
  setcontext(&scheduler);
  std::abort();
}
static unsigned arrive(Barrier& b, unsigned expected) {
  const unsigned mine = b.passed;
  if (++b.arrived == expected) b.arrived = 0, ++b.passed, progress = true;
  return mine;
}
static void meet(Barrier& b, unsigned expected) {
  const unsigned mine = arrive(b, expected);
  while (b.passed == mine) wait();
}
static Block& block() { return blocks[running / per_block]; }
static Warp& warp() { return block().warps[threadIdx.x / 32]; }
static void check(const void* from, unsigned size) {
  const auto at = reinterpret_cast<std::uintptr_t>(from);
  if (at % size) fail("a misaligned read");
  for (const Range& r : readable)
    if (r.begin <= at && at + size <= r.end) return;
  fail("a read outside the operands");
}
template <class T> T read(const void* from) {
  check(from, sizeof(T));
  T v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
struct Argument {
  long long value;
  operator long long() const { return value; }
  template <class T> operator T*() const { return reinterpret_cast<T*>(value); }
};
static void body() {
  kernel(arguments);
  threads[running].finished = true;
  progress = true;
  wait();
}
static const char* run(void (*call)(const long long*), const long long* given, unsigned grid,
                       unsigned split, unsigned count, unsigned shared, unsigned seed) {
  kernel = call, arguments = given, per_block = count, gridDim.x = grid, *error = 0;
  std::mt19937 random(seed);
  threads.resize(split * count);
  std::vector<unsigned> order(threads.size());
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i, threads[i].stack.resize(256 << 10);
  if (seed) std::shuffle(order.begin(), order.end(), random);
  for (unsigned first = 0; first < grid; first += split) {
    blocks.assign(split, {});
    for (Block& b : blocks) {
      b.memory.assign(shared / 16, {0xcdcdcdcd, 0x7fc07fc1, 0xcdcdcdcd, 0x7fffffff});
      b.warps.assign(count / 32, {});
    }
    cluster = {};
    for (Thread& t : threads) {
      t.finished = false, t.cluster = 0;
      getcontext(&t.context);
      t.context.uc_stack.ss_sp = t.stack.data();
      t.context.uc_stack.ss_size = t.stack.size();
      makecontext(&t.context, body, 0);
    }
    for (std::size_t left = threads.size(); left;) {
      progress = false;
      for (unsigned i : order) {
        if (threads[i].finished) continue;
        running = i, threadIdx.x = i % count, blockIdx.x = first + i / count;
        swapcontext(&scheduler, &threads[i].context);
        if (*error) return error;
        left -= threads[i].finished;
      }
      if (!progress) return "everybody waits";
    }
  }
  return error;
}
} // namespace cpu

#define SHARED ((char*)cpu::block().memory.data())

LEAF unsigned permute(unsigned a, unsigned b, unsigned selector) {
  const std::uint64_t both = a | (std::uint64_t)b << 32;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned nibble = selector >> (4 * i) & 15;
    unsigned byte = both >> (8 * (nibble & 7)) & 255;
    if (nibble & 8) byte = byte & 128 ? 255 : 0;
    out |= byte << (8 * i);
  }
  return out;
}
LEAF uint4 stream16(const void* at) { return cpu::read<uint4>(at); }
LEAF uint2 stream8(const void* at) { return cpu::read<uint2>(at); }
LEAF unsigned stream4(const void* at) { return cpu::read<unsigned>(at); }
LEAF unsigned stream2(const void* at) { return cpu::read<unsigned short>(at); }
LEAF unsigned stream1(const void* at) { return cpu::read<unsigned char>(at); }
LEAF float as_float(unsigned bits) { float v; std::memcpy(&v, &bits, 4); return v; }
LEAF unsigned bits_of(float v) { unsigned bits; std::memcpy(&bits, &v, 4); return bits; }
LEAF float of_half(unsigned bits) {
  _Float16 v;
  const unsigned short held = bits;
  std::memcpy(&v, &held, 2);
  return (float)v;
}
LEAF unsigned to_half(float v) {
  const _Float16 held = (_Float16)v;
  unsigned short bits;
  std::memcpy(&bits, &held, 2);
  return bits;
}
LEAF unsigned to_bfloat(float v) {
  const unsigned bits = bits_of(v);
  if (v != v) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
LEAF float power(float x) { return std::exp2(x); }
LEAF float from_lane(float v, int lane) {
  cpu::Warp& w = cpu::warp();
  float* slots = w.slots[w.barrier.passed % 2];
  slots[threadIdx.x % 32] = v;
  cpu::meet(w.barrier, 32);
  return slots[lane];
}
LEAF float from_other(float v, int step) { return from_lane(v, (threadIdx.x % 32) ^ step); }
// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
LEAF void multiply(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                   unsigned b1) {
  cpu::Warp& w = cpu::warp();
  auto* held = w.a[w.barrier.passed % 2];
  const unsigned mine[6] = {a0, a1, a2, a3, b0, b1};
  std::memcpy(held[threadIdx.x % 32], mine, sizeof mine);
  cpu::meet(w.barrier, 32);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + (i & 1);
    double sum = c[i];
    for (int k = 0; k < 16; ++k) {
      const unsigned a = held[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2] >> (16 * (k & 1));
      const unsigned b = held[column * 4 + k % 8 / 2][4 + k / 8] >> (16 * (k & 1));
      sum += (double)of_half(a & 0xffff) * of_half(b & 0xffff);
    }
    c[i] = (float)sum;
  }
}
LEAF void block_barrier() { cpu::meet(cpu::block().barrier, cpu::per_block); }
LEAF void warp_barrier() { cpu::meet(cpu::warp().barrier, 32); }
LEAF int cluster_rank() { return cpu::running / cpu::per_block; }
LEAF void cluster_arrive() {
  cpu::threads[cpu::running].cluster = cpu::arrive(cpu::cluster, cpu::threads.size());
}
LEAF void cluster_wait() {
  while (cpu::cluster.passed == cpu::threads[cpu::running].cluster) cpu::wait();
}
LEAF float4 of_rank(const float4* at, int rank) {
  const std::size_t offset = (const char*)at - SHARED;
  // A block that has ended has no memory.
  bool alive = false;
  for (unsigned i = 0; i < cpu::per_block; ++i)
    alive |= !cpu::threads[rank * cpu::per_block + i].finished;
  if (!alive) cpu::fail("a read of a block that has ended");
  float4 v;
  std::memcpy(&v, (const char*)cpu::blocks[rank].memory.data() + offset, sizeof v);
  return v;
}
