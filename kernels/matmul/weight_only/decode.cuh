// Codes to float16 pairs, as a product's first operand holds them.
//
// A thread holds 32 columns of K of a row; pair p of its sixteen holds columns FIRST(p) and
// SECOND(p), an order in which they are cheap to take apart: x is put into the same.
//
// UNIFORM and SIGNED give whole numbers as subnormal float16, 2**-24 of themselves: no constant has
// to be subtracted, and products take them exactly.  SIGNED has its magnitudes' bytes in BOOK_0 and
// BOOK_1.  TABLE looks pairs up in shared memory, where each lane has a copy in a bank of its own.

#if METHOD == TABLE
#define FIRST(p) (2 * (p))
#define SECOND(p) (2 * (p) + 1)
#elif BITS == 4
#define FIRST(p) (8 * ((p) / 4) + (p) % 4)
#define SECOND(p) (FIRST(p) + 4)
#else
#define FIRST(p) (p)
#define SECOND(p) ((p) + 16)
#endif

LEAF unsigned word_of(uint4 v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// Two bytes of eight below 128, each in the lower half of 16 bits: i of `a`, i of `b`.
LEAF unsigned spread(unsigned a, unsigned b, int i) {
  return permute(a, b, i + (8 + i) * 16 + (4 + i) * 256 + (12 + i) * 4096);
}

#if METHOD == TABLE
#define ENTRIES (BITS == 4 ? 256 : 64)
#define TABLE_BYTES (ENTRIES * 128)

LEAF unsigned pair_at(const char* table, unsigned index) {
  return *(const unsigned*)(table + index * 128);
}

// `mine` is the lane's column of the table, which begins at `table`.
LEAF void fill_table(char* table, int thread) {
  const unsigned short book[1 << BITS] = {BOOK};
  for (int i = thread; i < ENTRIES * 32; i += 32 * WARPS) {
    const int entry = i / 32;
#if BITS == 4
    const unsigned low = entry & 15, high = entry >> 4;
#else
    const unsigned low = (entry & 3) | (entry >> 4 & 1) << 2;
    const unsigned high = (entry >> 2 & 3) | (entry >> 5 & 1) << 2;
#endif
    ((unsigned*)table)[i] = book[low] | (unsigned)book[high] << 16;
  }
}
#else
#define TABLE_BYTES 0
#endif

#if BITS == 4
typedef uint4 Codes;

LEAF Codes load_codes(const char* codes, const char* signs, int quad) {
  return stream16(codes + quad * 16);
}

LEAF void decode(unsigned (&out)[16], Codes held, const char* table) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned w = word_of(held, i);
#if METHOD == SIGNED
    const unsigned magnitude = w & 0x77777777u;
    const unsigned low = permute(BOOK_0, BOOK_1, magnitude);
    const unsigned high = permute(BOOK_0, BOOK_1, magnitude >> 16);
#endif
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#if METHOD == SIGNED
      out[4 * i + j] = spread(low, high, j) | (w << (12 - 4 * j) & 0x80008000u);
#elif METHOD == UNIFORM
      out[4 * i + j] = w >> (4 * j) & 0x000f000fu;
#else
      out[4 * i + j] = pair_at(table, w >> (8 * j) & 255u);
#endif
    }
  }
}
#else
struct Codes {
  uint2 low;
  unsigned high;
};

LEAF Codes load_codes(const char* codes, const char* signs, int quad) {
  Codes out;
  out.low = stream8(codes + quad * 8);
  out.high = stream4(signs + quad * 4);
  return out;
}

LEAF void decode(unsigned (&out)[16], Codes held, const char* table) {
  const unsigned top = held.high;
#if METHOD == SIGNED
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const unsigned a = held.low.x >> (2 * odd) & 0x33333333u;
    const unsigned b = held.low.y >> (2 * odd) & 0x33333333u;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const unsigned first = permute(BOOK_0, BOOK_0, a >> (16 * half));
      const unsigned second = permute(BOOK_0, BOOK_0, b >> (16 * half));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int p = 8 * half + 2 * i + odd;
        out[p] = spread(first, second, i) | (top << (15 - p) & 0x80008000u);
      }
    }
  }
#elif METHOD == UNIFORM
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const unsigned both = permute(held.low.x, held.low.y, half ? 0x7632 : 0x5410);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int p = 8 * half + i;
      const unsigned high = p < 2 ? top << (2 - p) : top >> (p - 2);
      out[p] = (both >> (2 * i) & 0x00030003u) | (high & 0x00040004u);
    }
  }
#else
#pragma unroll
  for (int p = 0; p < 16; ++p) {
    const unsigned low = (p < 8 ? held.low.x : held.low.y) >> (4 * (p % 8)) & 15u;
    out[p] = pair_at(table, low | (top >> (2 * p) & 3u) << 4);
  }
#endif
}
#endif
