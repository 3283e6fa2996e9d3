// out [ROWS, columns] = activation(x [ROWS, K] @ weight [columns, K].T + bias) + residual for few
// rows: weights of four or three bits, x in 16 bits.  Bound by reading the weights once.
//
// The product is computed transposed, 16 columns of the output at a time: weights are the first
// operand of mma.m16n8k16, which a thread decodes from sixteen bytes as they are stored, 32
// neighbouring columns of K of one row; the order of K inside a step is free, and x is put into the
// order in which weights fall out.  A warp has CHUNKS pieces of 128 columns of K for every tile, and
// keeps x for them, in registers (HOLD) or in shared memory.  It loads DEPTH tiles ahead.  Sums of
// WARPS warps, and of SPLIT blocks of a cluster, are added up in a fixed order: the same bits every
// time.
//
// bfloat16 x becomes float16, a row's pieces of a warp times a power of two that puts its largest
// finite number below 2**15: what that loses is below 2**-39 of that number.

#define UNIFORM 0
#define SIGNED 1
#define TABLE 2

#include "constants"
#include "machine.cuh"
#include "decode.cuh"

#define THREADS (32 * WARPS)
#define UNITS (32 * TILES * NT) // of four sums
#define X_BYTES (HOLD ? 0 : WARPS * CHUNKS * NT * 4 * 32 * 16)
#define SUMS_BYTES (ZERO ? WARPS * CHUNKS * NT * 8 * 4 : 0)
#define PART_BYTES (BUFFERS * WARPS * UNITS * 16)
#define ROW_BYTES (BITS == 4 ? K / 2 : K / 4)
#define CHUNK_BYTES (BITS == 4 ? 64 : 32)

struct Tile {
  Codes codes[TILES][CHUNKS][2];
  unsigned scales[TILES][CHUNKS][2];
#if ZERO == 2
  unsigned zeros[TILES][CHUNKS][2];
#endif
};

struct Arguments {
  const char *x, *codes, *signs, *scales, *zeros, *bias, *residual;
  char* out;
  long long x_r, codes_r, signs_r, scales_r, zeros_r, residual_r; // bytes from row to row
  int columns, tiles;
};

LEAF float number(unsigned bits) { return BFLOAT ? as_float(bits << 16) : of_half(bits); }
LEAF unsigned stored(float v) { return BFLOAT ? to_bfloat(v) : to_half(v); }

LEAF float activated(float y) {
#if ACTIVATION == 1
  y = y / (1.0f + power(y * (-2.302208198f - 0.1029432397f * (y * y))));
#elif ACTIVATION == 2
  y = y * (0.5f + 0.5f * erff(y * 0.7071067811865476f));
#elif ACTIVATION == 3
  y = y / (1.0f + power(y * -1.4426950408889634f));
#endif
  return y;
}

LEAF void load_tile(Tile& to, const Arguments& g, int tile, int first, int lane) {
#pragma unroll
  for (int t = 0; t < TILES; ++t) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      // Past the end the last row is read again: its sums are not stored.
      const int at = (tile * TILES + t) * 16 + side * 8 + lane / 4;
      const long long row = at < g.columns ? at : g.columns - 1;
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
        const int chunk = first + c < PIECES ? first + c : PIECES - 1;
        to.codes[t][c][side] = load_codes(g.codes + row * g.codes_r + chunk * CHUNK_BYTES,
                                          g.signs + row * g.signs_r + chunk * 16, lane % 4);
        to.scales[t][c][side] = stream2(g.scales + row * g.scales_r + chunk / GROUP * 2);
#if ZERO == 2
        to.zeros[t][c][side] = stream1(g.zeros + row * g.zeros_r + chunk / GROUP);
#endif
      }
    }
  }
}

// A warp's pieces of x as second operands, scaled; `undo` are the factors of the lane's own columns
// of the sums.
LEAF void load_x(uint4 (&held)[HOLD ? CHUNKS : 1][HOLD ? NT : 1][4], float (&undo)[NT][2], uint4* xs,
                 float* sums, const Arguments& g, int first, int lane) {
#pragma unroll
  for (int nt = 0; nt < NT; ++nt) {
    const int row = nt * 8 + lane / 4;
    const char* from = g.x + row * g.x_r + lane % 4 * 64;
    float factor = 1.0f, back = 1.0f;
#if BFLOAT
    float most = 0.0f;
#pragma unroll 1
    for (int i = 0; i < CHUNKS * 4; ++i) {
      const int chunk = first + i / 4;
      uint4 v = make_uint4(0, 0, 0, 0);
      if (row < ROWS && chunk < PIECES) v = stream16(from + chunk * 256 + i % 4 * 16);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const unsigned bits = (word_of(v, j / 2) >> (16 * (j & 1)) & 0x7fffu) << 16;
        const float size = as_float(bits < 0x7f800000u ? bits : 0u);
        most = size > most ? size : most;
      }
    }
    for (int step = 1; step < 4; step *= 2) {
      const float other = from_other(most, step);
      most = other > most ? other : most;
    }
    const int exponent = int(bits_of(most) >> 23);
    const int up = 268 - exponent < 253 ? 268 - exponent : 253;
    factor = as_float((unsigned)up << 23);
    back = as_float((unsigned)(254 - up) << 23);
#endif
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      unsigned v[16];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint4 w = make_uint4(0, 0, 0, 0);
        if (row < ROWS && first + c < PIECES) w = stream16(from + (first + c) * 256 + i * 16);
        v[4 * i] = w.x, v[4 * i + 1] = w.y, v[4 * i + 2] = w.z, v[4 * i + 3] = w.w;
      }
      float total = 0.0f;
      unsigned pairs[16];
#pragma unroll
      for (int p = 0; p < 16; ++p) {
        unsigned both[2];
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int k = side ? SECOND(p) : FIRST(p);
          const unsigned bits = v[k / 2] >> (16 * (k & 1)) & 0xffffu;
          both[side] = BFLOAT ? to_half(number(bits) * factor) : bits;
          if (ZERO) total += of_half(both[side]);
        }
        pairs[p] = both[0] | both[1] << 16;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint4 four = make_uint4(pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2],
                                      pairs[4 * i + 3]);
#if HOLD
        held[c][nt][i] = four;
#else
        xs[((c * NT + nt) * 4 + i) * 32 + lane] = four;
#endif
      }
      if (ZERO) {
        total += from_other(total, 1);
        total += from_other(total, 2);
        if (lane % 4 == 0) sums[(c * NT + nt) * 8 + lane / 4] = total;
      }
    }
    undo[nt][0] = from_lane(back, lane % 4 * 8);
    undo[nt][1] = from_lane(back, lane % 4 * 8 + 4);
  }
}

// Bias, activation, residual and the store of four sums: two columns of the output, two rows.
LEAF void finish(const Arguments& g, int tile, int unit, float4 total) {
  const float sums[4] = {total.x, total.y, total.z, total.w};
  const int lane = unit % 32, t = unit / 32 / NT, nt = unit / 32 % NT;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int column = (tile * TILES + t) * 16 + lane / 4 + i / 2 * 8;
    const int row = nt * 8 + lane % 4 * 2 + i % 2;
    if (row >= ROWS || column >= g.columns) continue;
    float y = sums[i];
#if BIAS
    y += number(stream2(g.bias + column * 2LL));
#endif
    y = activated(y);
#if RESIDUAL
    y += number(stream2(g.residual + row * g.residual_r + column * 2LL));
#endif
    *(unsigned short*)(g.out + ((long long)row * g.columns + column) * 2) = stored(y);
  }
}

#if SPLIT > 1
// A block's share of a tile, from the sums of all blocks of its cluster.
LEAF void finish_cluster(const Arguments& g, int tile, const float4* from, int rank, int thread) {
  for (int i = thread; i < UNITS / SPLIT; i += THREADS) {
    const int unit = rank * (UNITS / SPLIT) + i;
    float4 total = of_rank(from + unit, 0);
#pragma unroll
    for (int r = 1; r < SPLIT; ++r) {
      const float4 more = of_rank(from + unit, r);
      total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
    }
    finish(g, tile, unit, total);
  }
}
#endif

extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, BLOCKS)
    stream(const char* x, const char* codes, const char* signs, const char* scales,
           const char* zeros, const char* bias, const char* residual, char* out, long long x_r,
           long long codes_r, long long signs_r, long long scales_r, long long zeros_r,
           long long residual_r, long long columns, long long tiles) {
  const Arguments g = {x, codes, signs, scales, zeros, bias, residual, out, x_r, codes_r, signs_r,
                       scales_r, zeros_r, residual_r, int(columns), int(tiles)};
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int rank = SPLIT > 1 ? cluster_rank() : 0;
  const int step = int(gridDim.x) / SPLIT;
  const int first = (rank * WARPS + warp) * CHUNKS;
  char* const table = SHARED;
  uint4* const xs = (uint4*)(SHARED + TABLE_BYTES) + warp * CHUNKS * NT * 4 * 32;
  float* const x_sums = (float*)(SHARED + TABLE_BYTES + X_BYTES) + warp * CHUNKS * NT * 8;
  float4* const part = (float4*)(SHARED + TABLE_BYTES + X_BYTES + SUMS_BYTES);
  float4* const whole = part + BUFFERS * WARPS * UNITS; // two of them, where SPLIT > 1

  Tile ahead[DEPTH];
#pragma unroll
  for (int d = 0; d < DEPTH; ++d) {
    const int tile = blockIdx.x / SPLIT + d * step;
    if (tile < g.tiles) load_tile(ahead[d], g, tile, first, lane);
  }
  uint4 held[HOLD ? CHUNKS : 1][HOLD ? NT : 1][4];
  float undo[NT][2];
  load_x(held, undo, xs, x_sums, g, first, lane);
#if METHOD == TABLE
  fill_table(table, thread);
  block_barrier();
#endif
  warp_barrier();

  int turn = 0, begin = 0;
  for (int base = blockIdx.x / SPLIT; base < g.tiles; base += DEPTH * step) {
#pragma unroll
    for (int d = 0; d < DEPTH; ++d) {
      const int tile = base + d * step;
      if (tile >= g.tiles) break;
      float sums[TILES][NT][4] = {};
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
        float products[TILES][NT][4] = {};
        unsigned w[TILES][2][16];
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
          decode(w[t][0], ahead[d].codes[t][c][0], table + lane * 4);
          decode(w[t][1], ahead[d].codes[t][c][1], table + lane * 4);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int nt = 0; nt < NT; ++nt) {
#if HOLD
            const uint4 v = held[c][nt][i];
#else
            const uint4 v = xs[((c * NT + nt) * 4 + i) * 32 + lane];
#endif
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
              multiply(products[t][nt], w[t][0][4 * i], w[t][1][4 * i], w[t][0][4 * i + 1],
                       w[t][1][4 * i + 1], v.x, v.y);
              multiply(products[t][nt], w[t][0][4 * i + 2], w[t][1][4 * i + 2],
                       w[t][0][4 * i + 3], w[t][1][4 * i + 3], v.z, v.w);
            }
          }
        }
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            const float scale = of_half(ahead[d].scales[t][c][side]);
            const float by = first + c < PIECES ? scale : 0.0f;
#if ZERO == 2
            const float zero = float(ahead[d].zeros[t][c][side]);
#elif ZERO == 1
            const float zero = float(OFFSET);
#endif
#pragma unroll
            for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
              for (int i = 0; i < 2; ++i) {
                float got = products[t][nt][2 * side + i] * UNDO;
#if ZERO
                got -= zero * x_sums[(c * NT + nt) * 8 + lane % 4 * 2 + i];
#endif
                sums[t][nt][2 * side + i] += got * by;
              }
            }
          }
        }
      }
      const int later = tile + DEPTH * step;
      if (later < g.tiles) load_tile(ahead[d], g, later, first, lane);

      float4* const mine = part + (BUFFERS == 2 ? turn : 0) * WARPS * UNITS;
      if (BUFFERS == 1) block_barrier(); // The tile before has been added up.
#if SPLIT > 1
      if (tile != (int)(blockIdx.x / SPLIT)) {
        cluster_wait();
        finish_cluster(g, tile - step, whole + (turn ^ 1) * UNITS, rank, thread);
      }
#endif
#pragma unroll
      for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int nt = 0; nt < NT; ++nt) {
          const float* s = sums[t][nt];
          mine[warp * UNITS + (t * NT + nt) * 32 + lane] = make_float4(
              s[0] * undo[nt][0], s[1] * undo[nt][1], s[2] * undo[nt][0], s[3] * undo[nt][1]);
        }
      }
      block_barrier();
      // Other warps each time, so that all have the same work.
      int at = thread - begin;
      if (at < 0) at += THREADS;
      for (int unit = at; unit < UNITS; unit += THREADS) {
        float4 total = mine[unit];
#pragma unroll
        for (int i = 1; i < WARPS; ++i) {
          const float4 more = mine[i * UNITS + unit];
          total.x += more.x, total.y += more.y, total.z += more.z, total.w += more.w;
        }
        if (SPLIT > 1) whole[turn * UNITS + unit] = total;
        else finish(g, tile, unit, total);
      }
      begin = (begin + UNITS) % THREADS;
#if SPLIT > 1
      cluster_arrive();
#endif
      turn ^= 1;
    }
  }
#if SPLIT > 1
  const int start = blockIdx.x / SPLIT;
  if (start < g.tiles) {
    cluster_wait();
    const int last = start + (g.tiles - 1 - start) / step * step;
    finish_cluster(g, last, whole + (turn ^ 1) * UNITS, rank, thread);
    // Nobody leaves while its memory is read.
    cluster_arrive();
    cluster_wait();
  }
#endif
}
