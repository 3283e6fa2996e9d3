// Rows of a warp in registers: how they are loaded, reduced to their maxima and stored as codes.
//
// LANES threads share a row and hold CHUNKS vectors of it each; a thread holds ROWS rows.

#define ELEMENTS (VECTOR / ITEM)
#define VECTORS (HEAD_DIM / ELEMENTS)
#define CHUNKS ((VECTORS + LANES - 1) / LANES)
#define ROWS_A_LOAD (32 / LANES)
#define WARP_ROWS (ROWS * ROWS_A_LOAD)
#define TILE (WARPS * WARP_ROWS)
#define CHANNEL_GROUPS (HEAD_DIM / GROUP_CHANNELS)
#define THREADS (WARPS * 32)
#define ALL_LANES 0xffffffffu

#if VECTOR == 16
typedef uint4 Raw;
#elif VECTOR == 8
typedef uint2 Raw;
#elif VECTOR == 4
typedef unsigned Raw;
#else
typedef unsigned short Raw;
#endif

union Vector {
  Raw raw;
  unsigned words[(VECTOR + 3) / 4];
};

struct Input {
  const char* x;
  long long batch_stride, head_stride, token_stride;
  int heads, tokens;
};

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp() { return threadIdx.x / 32; }
__device__ __forceinline__ int row_in_warp(int i) { return i * ROWS_A_LOAD + lane() / LANES; }
__device__ __forceinline__ int vector_in_row(int j) { return j * LANES + lane() % LANES; }

__device__ __forceinline__ const char* matrix_start(const Input& input, int matrix) {
  return input.x + matrix / input.heads * input.batch_stride +
         matrix % input.heads * input.head_stride;
}

// The source of the row that this lane looks up for its warp; `first` is the warp's first one.
// Beyond the last row the answer is some row of the tensor, so no warp needs to branch.
__device__ __forceinline__ int source_row(const Input& input, int matrix,
                                          int first TABLE_PARAMETERS) {
  const int s = minimum(first + lane(), input.tokens - 1);
  const int token = index(s, matrix % input.heads TABLE_ARGUMENTS);
  // A list given at the call is not inspected: what it holds must not lead outside the tensor.
  return minimum(maximum(token, 0), input.tokens - 1);
}

// The warp's rows; `token` is the source of row lane().  Rows from `rows` on read as zeros.
template <bool AGAIN> // they will be read again, so keep them in the cache
__device__ __forceinline__ void load_rows(Vector (&held)[ROWS][CHUNKS], const Input& input,
                                          int matrix, int token, int rows) {
  const char* base = matrix_start(input, matrix);
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    const int source = __shfl_sync(ALL_LANES, token, row_in_warp(i));
    const Raw* row = reinterpret_cast<const Raw*>(base + source * input.token_stride);
#pragma unroll
    for (int j = 0; j < CHUNKS; ++j) {
      const int v = vector_in_row(j);
      held[i][j] = Vector{};
      if (row_in_warp(i) < rows && v < VECTORS)
        held[i][j].raw = AGAIN ? __ldcg(row + v) : __ldcs(row + v);
    }
  }
}

#if METHOD != PERMUTE

__device__ __forceinline__ float element(const Vector& vector, int e) {
#if ITEM == 4
  return as_float(vector.words[e]);
#else
  return FROM_BITS(e % 2 ? vector.words[e / 2] >> 16 : vector.words[e / 2] & 0xffff);
#endif
}

__device__ __forceinline__ unsigned peak_of(const Vector& vector) {
  unsigned peak = 0;
#pragma unroll
  for (int e = 0; e < ELEMENTS; ++e) peak = larger(peak, magnitude(element(vector, e)));
  return peak;
}

// The largest over `span` neighbouring lanes (a power of two), in all of them.
__device__ __forceinline__ unsigned peak_of_lanes(unsigned peak, int span) {
#pragma unroll
  for (int step = span / 2; step > 0; step /= 2)
    peak = larger(peak, __shfl_xor_sync(ALL_LANES, peak, step));
  return peak;
}

struct __align__(8) Scale {
  float scale, factor;
};

__device__ __forceinline__ Scale make_scale(unsigned peak) {
  const float scale = scale_of(peak);
  return {scale, factor_of(scale)};
}

// The scales of one vector's elements: `at(e)` where e is known to the compiler, `any(e)` where not.
struct OneScale {
  Scale scale;
  __device__ __forceinline__ Scale at(int) const { return scale; }
  __device__ __forceinline__ float any(int) const { return scale.scale; }
};

// The vector without its first element.
__device__ __forceinline__ Vector rest_of(Vector vector) {
#pragma unroll
  for (int w = 0; w < (VECTOR + 3) / 4; ++w) {
    const unsigned next = w + 1 < VECTOR / 4 ? vector.words[w + 1] : 0;
    vector.words[w] = ITEM == 4 ? next : vector.words[w] >> 16 | next << 16;
  }
  return vector;
}

// Codes of one vector.
template <class Scales>
__device__ __forceinline__ void store_codes(signed char* to, Vector vector, const Scales& scales) {
  unsigned low = 0, high = 0;
  bool by_product = true;
#pragma unroll
  for (int e = 0; e < ELEMENTS; ++e) by_product = by_product && scales.at(e).factor > 0.0f;
  if (by_product) {
    unsigned codes[8] = {};
#pragma unroll
    for (int e = 0; e < ELEMENTS; ++e)
      codes[e] = code_by_product(element(vector, e), scales.at(e).scale, scales.at(e).factor);
    low = low_bytes(codes[0], codes[1], codes[2], codes[3]);
    high = low_bytes(codes[4], codes[5], codes[6], codes[7]);
  } else {
    // Rare, so one element at a time: eight divisions side by side would triple the kernel.
#pragma unroll 1
    for (int e = 0; e < ELEMENTS; ++e) {
      const unsigned code = code_by_division(element(vector, 0), scales.any(e)) & 255;
      if (e < 4)
        low |= code << 8 * e;
      else
        high |= code << 8 * (e - 4);
      vector = rest_of(vector);
    }
  }
#if VECTOR / ITEM == 8
  *reinterpret_cast<uint2*>(to) = make_uint2(low, high);
#elif VECTOR / ITEM == 4
  *reinterpret_cast<unsigned*>(to) = low;
#elif VECTOR / ITEM == 2
  *reinterpret_cast<unsigned short*>(to) = (unsigned short)low;
#else
  *to = (signed char)low;
#endif
}

// Codes of all rows held, the first one's at `to`; `scales(i, j)` are the scales of a vector.
template <class Scales>
__device__ __forceinline__ void store_rows(signed char* to, Vector (&held)[ROWS][CHUNKS], int rows,
                                           Scales scales) {
#pragma unroll
  for (int j = 0; j < CHUNKS; ++j) {
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      const int row = row_in_warp(i), v = vector_in_row(j);
      if (row < rows && v < VECTORS)
        store_codes(to + (long long)row * HEAD_DIM + v * ELEMENTS, held[i][j], scales(i, j));
    }
  }
}

#endif
