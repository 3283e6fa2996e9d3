// [batch, heads, tokens, head_dim] brought into stored order, quantized to 8 bits on the way.
//
// A warp moves WARP_ROWS rows.  LANES of its threads share a row and hold CHUNKS vectors of it
// each; every thread holds ROWS rows, all loaded before the first is stored, to keep enough bytes
// in flight.  Each thread works out the source of one row, and the warp hands the results round.
// Strides of the input are in bytes.  The output is contiguous.
//
// The section between the two marks is a stand-in (the original order, one configuration), so that
// this file compiles on its own; generated constants and a generated `index` replace it.

// METHOD is one of these.
#define PERMUTE 0  // rows as they are
#define EACH_ROW 1 // a scale for each token, or for groups of its channels
#define BLOCKS 2   // a scale for GROUP_TOKENS tokens, which one thread block holds
#define GROUPS 3   // any other groups: one phase finds the maxima, another one writes the codes

// --- stand-in: replaced by the generated part ---
#ifdef __CUDACC__
#define KDSL_LEAF __host__ __device__ __forceinline__
#else
#define KDSL_LEAF static inline
#endif

#ifndef METHOD
#define METHOD PERMUTE
#endif
#define ITEM 2                  // bytes of an element
#define FROM_BITS from_bfloat16 // or from_float16, for elements of 2 bytes
#define HEAD_DIM 128
#define GROUP_TOKENS 64    // tokens of a scale; 0 for all
#define GROUP_CHANNELS 128 // channels of a scale
#define VECTOR 16          // bytes of a load
#define LANES 16
#define ROWS 4
#define WARPS 8
#define TABLE_PARAMETERS // , const int* __restrict__ table_0
#define TABLE_ARGUMENTS  // , table_0

KDSL_LEAF int minimum(int a, int b) { return a < b ? a : b; }
KDSL_LEAF int maximum(int a, int b) { return a > b ? a : b; }
KDSL_LEAF int index(int s, int head) { return s; }
// --- end of the stand-in ---

#include "numbers.cuh"

#ifdef __CUDACC__

#include "rows.cuh"

#if METHOD == PERMUTE

extern "C" __global__ void __launch_bounds__(THREADS)
    permute(const char* x, long long batch_stride, long long head_stride, long long token_stride,
            long long heads, long long tokens, char* out TABLE_PARAMETERS) {
  const Input input = {x, batch_stride, head_stride, token_stride, int(heads), int(tokens)};
  const int tiles = (input.tokens + TILE - 1) / TILE;
  const int matrix = blockIdx.x / tiles;
  const int first = int(blockIdx.x % tiles) * TILE + warp() * WARP_ROWS;
  const int rows = input.tokens - first;
  const int token = source_row(input, matrix, first TABLE_ARGUMENTS);
  Vector held[ROWS][CHUNKS];
  load_rows<false>(held, input, matrix, token, rows);
  char* to = out + (matrix * tokens + first) * (HEAD_DIM * ITEM);
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
#pragma unroll
    for (int j = 0; j < CHUNKS; ++j) {
      const int row = row_in_warp(i), v = vector_in_row(j);
      if (row < rows && v < VECTORS)
        reinterpret_cast<Raw*>(to + (long long)row * (HEAD_DIM * ITEM))[v] = held[i][j].raw;
    }
  }
}

#elif METHOD == EACH_ROW

// Neighbouring lanes that share a scale.
#define SPAN (CHANNEL_GROUPS == 1 ? LANES : GROUP_CHANNELS / ELEMENTS)

extern "C" __global__ void __launch_bounds__(THREADS)
    quantize_rows(const char* x, long long batch_stride, long long head_stride,
                  long long token_stride, long long heads, long long tokens, signed char* codes,
                  float* scales TABLE_PARAMETERS) {
  const Input input = {x, batch_stride, head_stride, token_stride, int(heads), int(tokens)};
  const int tiles = (input.tokens + TILE - 1) / TILE;
  const int matrix = blockIdx.x / tiles;
  const int first = int(blockIdx.x % tiles) * TILE + warp() * WARP_ROWS;
  const int rows = input.tokens - first;
  const int token = source_row(input, matrix, first TABLE_ARGUMENTS);
  Vector held[ROWS][CHUNKS];
  load_rows<false>(held, input, matrix, token, rows);
  Scale found[ROWS][CHUNKS];
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    unsigned peak = 0;
#pragma unroll
    for (int j = 0; j < CHUNKS; ++j) {
      peak = larger(CHANNEL_GROUPS == 1 ? peak : 0u, peak_of(held[i][j]));
      if (CHANNEL_GROUPS > 1 || j == CHUNKS - 1) found[i][j] = make_scale(peak_of_lanes(peak, SPAN));
    }
  }
  const long long start = matrix * tokens + first;
  store_rows(codes + start * HEAD_DIM, held, rows, [&](int i, int j) {
    return OneScale{found[i][CHANNEL_GROUPS == 1 ? CHUNKS - 1 : j]};
  });
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
#pragma unroll
    for (int j = CHANNEL_GROUPS == 1 ? CHUNKS - 1 : 0; j < CHUNKS; ++j) {
      const int row = row_in_warp(i), v = CHANNEL_GROUPS == 1 ? lane() % LANES : vector_in_row(j);
      if (row < rows && v < VECTORS && v % SPAN == 0)
        scales[(start + row) * CHANNEL_GROUPS + v / SPAN] = found[i][j].scale;
    }
  }
}

#elif METHOD == BLOCKS

extern "C" __global__ void __launch_bounds__(THREADS)
    quantize_blocks(const char* x, long long batch_stride, long long head_stride,
                    long long token_stride, long long heads, long long tokens, signed char* codes,
                    float* scales TABLE_PARAMETERS) {
  static_assert(TILE >= GROUP_TOKENS, "a thread block holds a whole group");
  __shared__ unsigned peaks[WARPS];
  const Input input = {x, batch_stride, head_stride, token_stride, int(heads), int(tokens)};
  const int blocks = (input.tokens + GROUP_TOKENS - 1) / GROUP_TOKENS;
  const int matrix = blockIdx.x / blocks;
  const int group = int(blockIdx.x % blocks);
  const int first = group * GROUP_TOKENS + warp() * WARP_ROWS;
  const int in_group = minimum(GROUP_TOKENS, input.tokens - group * GROUP_TOKENS);
  const int rows = in_group - warp() * WARP_ROWS;
  const int token = source_row(input, matrix, first TABLE_ARGUMENTS);
  Vector held[ROWS][CHUNKS];
  load_rows<false>(held, input, matrix, token, rows);
  unsigned peak = 0;
#pragma unroll
  for (int i = 0; i < ROWS; ++i)
#pragma unroll
    for (int j = 0; j < CHUNKS; ++j) peak = larger(peak, peak_of(held[i][j]));
  peak = __reduce_max_sync(ALL_LANES, peak);
  if (lane() == 0) peaks[warp()] = peak;
  __syncthreads();
  peak = __reduce_max_sync(ALL_LANES, lane() < WARPS ? peaks[lane()] : 0u);
  const Scale scale = make_scale(peak);
  if (threadIdx.x == 0) scales[blockIdx.x] = scale.scale;
  store_rows(codes + (matrix * tokens + first) * HEAD_DIM, held, rows,
             [&](int, int) { return OneScale{scale}; });
}

#elif METHOD == GROUPS

// Work of one thread block: some rows of a unit, which is a group of tokens of one head.
struct Task {
  bool codes; // or maxima
  unsigned unit;
  int tile;
};

// Tasks in the order of their tickets: codes follow their unit's maxima at a distance of `lag`
// units, near enough for the second reading to come from the cache, and alternate with them.
__device__ __forceinline__ Task task_of(unsigned ticket, unsigned units, unsigned tiles,
                                        unsigned lag) {
  const unsigned head = lag * tiles, middle = (units - lag) * 2 * tiles;
  if (ticket < head) return {false, ticket / tiles, int(ticket % tiles)};
  if (ticket < head + middle) {
    const unsigned step = (ticket - head) / (2 * tiles), rest = (ticket - head) % (2 * tiles);
    return {rest % 2 == 1, rest % 2 == 1 ? step : step + lag, int(rest / 2)};
  }
  const unsigned rest = ticket - head - middle;
  return {true, units - lag + rest / tiles, int(rest % tiles)};
}

__device__ __forceinline__ int channel_group(int v, int e) {
  return (v * ELEMENTS + e) / GROUP_CHANNELS;
}

// See OneScale.
struct ManyScales {
  int v;
  const Scale* shared;
  Scale known[ELEMENTS];
  __device__ __forceinline__ Scale at(int e) const { return known[e]; }
  __device__ __forceinline__ float any(int e) const { return shared[channel_group(v, e)].scale; }
};

// Largest magnitudes of the rows held, into the thread block's `peaks`.
__device__ __forceinline__ void add_peaks(unsigned* peaks, Vector (&held)[ROWS][CHUNKS]) {
#if HEAD_DIM == GROUP_CHANNELS
  unsigned peak = 0;
#pragma unroll
  for (int i = 0; i < ROWS; ++i)
#pragma unroll
    for (int j = 0; j < CHUNKS; ++j) peak = larger(peak, peak_of(held[i][j]));
  peak = __reduce_max_sync(ALL_LANES, peak);
  if (lane() == 0) atomicMax(peaks, peak);
#else
#pragma unroll
  for (int j = 0; j < CHUNKS; ++j) {
#pragma unroll
    for (int e = 0; e < ELEMENTS; ++e) {
      unsigned peak = 0;
#pragma unroll
      for (int i = 0; i < ROWS; ++i) peak = larger(peak, magnitude(element(held[i][j], e)));
#pragma unroll
      for (int step = LANES; step < 32; step *= 2)
        peak = larger(peak, __shfl_xor_sync(ALL_LANES, peak, step));
      const int v = vector_in_row(j);
      if (lane() < LANES && v < VECTORS) atomicMax(&peaks[channel_group(v, e)], peak);
    }
  }
#endif
}

// `scratch` is zero when the kernel starts: the next ticket, then (32 words on) how many tasks of
// each unit have added their maxima, then the maxima of each unit.
extern "C" __global__ void __launch_bounds__(THREADS)
    quantize_groups(const char* x, long long batch_stride, long long head_stride,
                    long long token_stride, long long heads, long long tokens, signed char* codes,
                    float* scales, unsigned* scratch, long long units, long long lag
                    TABLE_PARAMETERS) {
  __shared__ unsigned ticket, peaks[CHANNEL_GROUPS];
  __shared__ Scale shared_scales[CHANNEL_GROUPS];
  const Input input = {x, batch_stride, head_stride, token_stride, int(heads), int(tokens)};
  const int group_tokens = GROUP_TOKENS ? GROUP_TOKENS : input.tokens;
  const int groups = (input.tokens - 1) / group_tokens + 1;
  const int tiles = (minimum(group_tokens, input.tokens) - 1) / TILE + 1;

  // Tickets and not blockIdx: a task that waits must know that those before it have started.
  if (threadIdx.x == 0) ticket = atomicAdd(scratch, 1u);
  for (int c = threadIdx.x; c < CHANNEL_GROUPS; c += THREADS) peaks[c] = 0;
  __syncthreads();
  const Task task = task_of(ticket, unsigned(units), tiles, unsigned(lag));
  unsigned* done = scratch + 32 + task.unit;
  unsigned* maxima = scratch + 32 + units + (long long)task.unit * CHANNEL_GROUPS;

  const int matrix = task.unit / groups;
  const int group = int(task.unit % groups);
  const int in_group = minimum(group_tokens, input.tokens - group * group_tokens);
  const int ahead = task.tile * TILE + warp() * WARP_ROWS; // rows of the group before this warp's
  const int first = group * group_tokens + ahead, rows = in_group - ahead;
  Vector held[ROWS][CHUNKS];

  if (!task.codes) {
#if GROUP_TOKENS
    const int token = source_row(input, matrix, first TABLE_ARGUMENTS);
#else
    const int token = minimum(first + lane(), input.tokens - 1); // all of them, in any order
#endif
    load_rows<true>(held, input, matrix, token, rows);
    add_peaks(peaks, held);
    __syncthreads();
    for (int c = threadIdx.x; c < CHANNEL_GROUPS; c += THREADS) atomicMax(&maxima[c], peaks[c]);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(done, 1u);
    return;
  }

  const int token = source_row(input, matrix, first TABLE_ARGUMENTS);
  load_rows<false>(held, input, matrix, token, rows);
  if (threadIdx.x == 0)
    while (*(volatile unsigned*)done < unsigned(tiles)) __nanosleep(64);
  __threadfence();
  __syncthreads();
  for (int c = threadIdx.x; c < CHANNEL_GROUPS; c += THREADS) {
    const Scale scale = make_scale(__ldcg(&maxima[c]));
    shared_scales[c] = scale;
    if (task.tile == 0) scales[(long long)task.unit * CHANNEL_GROUPS + c] = scale.scale;
  }
  __syncthreads();
  signed char* to = codes + (matrix * tokens + first) * HEAD_DIM;
#pragma unroll
  for (int j = 0; j < CHUNKS; ++j) {
    // Into registers: the compiler cannot know that storing codes leaves shared memory alone.
    const int v = minimum(vector_in_row(j), VECTORS - 1);
    ManyScales many = {v, shared_scales};
#pragma unroll
    for (int e = 0; e < ELEMENTS; ++e) many.known[e] = shared_scales[channel_group(v, e)];
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
      if (row_in_warp(i) < rows && vector_in_row(j) < VECTORS)
        store_codes(to + (long long)row_in_warp(i) * HEAD_DIM + v * ELEMENTS, held[i][j], many);
  }
}

#endif
#endif
