// Enough of CUDA C for a host compiler to run the permute kernels, slowly and strictly.
//
// Threads of a block are coroutines that run until they wait for others, in the order of a seed, so
// that a missing barrier shows; blocks run one after another, in an order of the seed too.  Shared
// memory is filled with garbage before each block.  Reads through __ldcs and __ldcg are checked
// against the ranges given and for their alignment.  A wait that cannot end is an error.

#pragma once

#define __CUDACC__ 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static __attribute__((section("shared_memory")))

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

struct Dim {
  unsigned x;
};
extern Dim threadIdx, blockIdx;

namespace cpu {

// Ends the run with a message.
[[noreturn]] void fail(const char* what);
// Fails unless `size` bytes may be read there.
void check_read(const void* at, unsigned long size);
// What every lane of the warp holds, once all have arrived.
const unsigned* exchange(unsigned value);
// Returns when every thread of the block has arrived.
void wait_for_block();
// Runs the kernel `call(arguments)`; the text of an error, or an empty one.
const char* run(void (*call)(const long long*), const long long* arguments, unsigned blocks,
                unsigned threads, unsigned seed);

// An argument of a kernel: an address or an integer.
struct Argument {
  long long value;
  operator long long() const { return value; }
  template <class T>
  operator T*() const {
    return reinterpret_cast<T*>(value);
  }
};

} // namespace cpu

inline void __syncthreads() { cpu::wait_for_block(); }
inline void __threadfence() {}
inline void __nanosleep(unsigned) { cpu::fail("a task waits for one that has not run"); }

inline int __shfl_sync(unsigned, int value, int lane) {
  return int(cpu::exchange(unsigned(value))[lane & 31]);
}
inline unsigned __shfl_xor_sync(unsigned, unsigned value, int step) {
  const unsigned from = (threadIdx.x ^ step) & 31;
  return cpu::exchange(value)[from];
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  const unsigned* all = cpu::exchange(value);
  unsigned most = 0;
  for (int i = 0; i < 32; ++i) most = all[i] > most ? all[i] : most;
  return most;
}
inline unsigned atomicMax(unsigned* at, unsigned value) {
  const unsigned old = *at;
  *at = old > value ? old : value;
  return old;
}
inline unsigned atomicAdd(unsigned* at, unsigned value) {
  const unsigned old = *at;
  *at += value;
  return old;
}
template <class T>
T __ldcs(const T* from) {
  cpu::check_read(from, sizeof(T));
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  cpu::check_read(from, sizeof(T));
  return *from;
}
