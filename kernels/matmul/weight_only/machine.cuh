// What the kernel needs of the machine, an instruction or two each.  A test's emulator supplies the
// same functions in plain C++.

#ifdef __CUDACC_RTC__

#define LEAF __device__ __forceinline__

LEAF unsigned permute(unsigned a, unsigned b, unsigned selector) {
  // Not __byte_perm, which drops the bit that spreads a byte's sign.
  unsigned out;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(selector));
  return out;
}

LEAF uint4 stream16(const void* at) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
  return v;
}
LEAF uint2 stream8(const void* at) {
  uint2 v;
  asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(at));
  return v;
}
LEAF unsigned stream4(const void* at) {
  unsigned v;
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(at));
  return v;
}
LEAF unsigned stream2(const void* at) {
  unsigned short v;
  asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(at));
  return v;
}
LEAF unsigned stream1(const void* at) {
  unsigned v;
  asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(v) : "l"(at));
  return v;
}

LEAF float of_half(unsigned bits) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"((unsigned short)bits));
  return v;
}
LEAF unsigned to_half(float v) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
}
LEAF unsigned to_bfloat(float v) {
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
}
LEAF float as_float(unsigned bits) { return __uint_as_float(bits); }
LEAF unsigned bits_of(float v) { return __float_as_uint(v); }

// sums [16 x 8] += a [16 x 16] @ b [16 x 8], float16 in, float32 out.
LEAF void multiply(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                   unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

LEAF float from_lane(float v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
LEAF float from_other(float v, int step) { return __shfl_xor_sync(0xffffffffu, v, step); }
LEAF void block_barrier() { __syncthreads(); }
LEAF void warp_barrier() { __syncwarp(); }

// Blocks of a cluster: their rank, two halves of a barrier, and a read of another one's memory.
LEAF int cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return int(rank);
}
LEAF void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
LEAF void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
LEAF float4 of_rank(const float4* at, int rank) {
  const unsigned mine = (unsigned)__cvta_generic_to_shared(at);
  unsigned theirs;
  float4 v;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(theirs) : "r"(mine), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(theirs) : "memory");
  return v;
}

LEAF float power(float x) {
  float v;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
  return v;
}

extern __shared__ uint4 memory[];
#define SHARED ((char*)memory)

#endif
