// InfoNCE against the ring of keys, loss and gradient in one pass, and the ring's own kernels.
//
// 16-bit types, up to 256 columns: infonce_parts_kernel, attention whose keys and values are both the ring
// (FlashAttention-2's structure: a tile of the ring in shared memory serves both products, the dot products live in
// registers). The ring is split over blocks; infonce_finish_kernel joins their states in a fixed order. Wider rows do
// not fit the register file, and fp32 needs more than tensor cores give: there the products are cuBLAS's, chunk by
// chunk, with infonce_mask_kernel and infonce_weigh_kernel between them.

#include "ppa/infonce.h"

#include <type_traits>

#include "cuda/device.cuh"
#include "ppa/operations.h"
#include "ppa/ring.h"

namespace ppa::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;

// Reductions over a block, in an order that is fixed by its size; every thread receives the result. `shared` holds a
// float for each warp and must not be in use.
template <bool kMax>
__device__ __forceinline__ float reduce_block(float value, float* shared) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(kFullWarp, value, offset);
    value = kMax ? fmaxf(value, other) : value + other;
  }
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared[0];
  for (unsigned w = 1; w < blockDim.x / 32; ++w) value = kMax ? fmaxf(value, shared[w]) : value + shared[w];
  return value;
}

// The ring's kernels.

// A warp writes one key to the ring, or refuses it.
template <typename Key, typename T>
__device__ __forceinline__ void enqueue_key(const Ring& ring, const Key* key, int64_t group, int64_t position) {
  const RingState state = ring_checked(*ring.state, ring.rows);
  const int lane = threadIdx.x % 32;
  bool accepted = ring_pending(position, state.count, ring.rows);
  for (int64_t d = lane; d < ring.dim; d += 32) accepted = accepted && ring_accepts<T>(to_float(key[d]));
  if (!__all_sync(kFullWarp, accepted)) {
    if (lane == 0) atomicAdd(reinterpret_cast<unsigned long long*>(&ring.state->refused), 1ull);
    return;
  }
  const int64_t row = ring_row(state.cursor, position, ring.rows);
  T* to = static_cast<T*>(ring.keys) + row * ring.dim;
  for (int64_t d = lane; d < ring.dim; d += 32) to[d] = from_float<T>(to_float(key[d]));
  if (lane == 0) ring.groups[row] = group;
}

constexpr int kEnqueueThreads = 128;

template <typename Key, typename T>
__global__ void __launch_bounds__(kEnqueueThreads) enqueue_kernel(const __grid_constant__ EnqueueArgs args) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kEnqueueThreads + threadIdx.x) / 32;
  if (i >= args.n) return;
  const Key* key = static_cast<const Key*>(args.keys) + i * args.ring.dim;
  enqueue_key<Key, T>(args.ring, key, args.groups[i], args.positions[i]);
}

__global__ void commit_kernel(RingState* state, int64_t written, int64_t size, int64_t rows) {
  *state = ring_commit(ring_checked(*state, rows), written, size, rows);
}

Status enqueue(const Context& context, const EnqueueArgs& args) {
  return with_type(args.ring.type, [&](auto stored) {
    using T = decltype(stored);
    const auto kernel = args.keys_type == args.ring.type ? enqueue_kernel<T, T> : enqueue_kernel<float, T>;
    const dim3 grid(static_cast<unsigned>(ceil_div(args.n, kEnqueueThreads / 32)));
    return launch(kernel, grid, dim3(kEnqueueThreads), 0, context.stream, args);
  });
}

Status commit(const Context& context, RingState* state, int64_t written, int64_t size, int64_t rows) {
  return launch(commit_kernel, dim3(1), dim3(1), 0, context.stream, state, written, size, rows);
}

// The parts of the ring at once.

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kMaxParts = 512;

// kDim: the rows' length, padded with zeros; kTiles: 16-row tiles of queries for each warp. With two of them a fragment
// of the ring that was read from shared memory is used twice: with one, shared memory (128 bytes a clock) bounds the
// products at 2,048 flop a clock and multiprocessor, below what mma.sync does on an H200 (some 2,500).
//
//                        registers: sums, dot products, all on sm_80 / 90 / 100   shared memory   blocks, sm_80 / 90
//   kDim  64, kTiles 1          32    32    118 / 126 / 132                           26 KB             4 / 4
//   kDim  64, kTiles 2          64    32    164 / 184 / 170                           26 KB             3 / 2
//   kDim 128, kTiles 1          64    32    158 / 166 / 166                           50 KB             3 / 3
//   kDim 128, kTiles 2         128    32    246 / 250 / 255                           50 KB             2 / 2
//   kDim 256, kTiles 1         128    32    234 / 236 / 244                           98 KB             1 / 2
template <typename T, int kDim, int kTiles>
struct PartsKernel {
  static constexpr int kRows = kWarps * kTiles * 16;  // queries of a block
  static constexpr int kColumns = 64 / kTiles;        // of the dot products: rows of the ring in a tile
  static constexpr int kChunks = kDim / 8;            // 16 bytes each, of a row in shared memory
  static constexpr size_t kSharedBytes = (kRows + 2 * kColumns) * (kDim * sizeof(T) + sizeof(int64_t));

  // Where a 16-byte chunk lies in a tile: permuted with its seven neighbours by the row's number, so that the chunks of
  // one index of eight rows lie in different banks.
  static __device__ __forceinline__ int at(int row, int chunk) {
    return row * kDim + chunk / 8 * 64 + ((chunk ^ row) % 8) * 8;
  }
};

// Two floats, rounded, in one register; `low` at the lower address.
template <typename T>
PPA_INLINE uint32_t pack(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t bits;
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  }
  return bits;
#else
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
#endif
}

// Block (part, rows of queries): the state of these queries over this part of the live rows, counted from the oldest.
// What a lane holds of a 16 x 8 tile of products: rows lane / 4 and lane / 4 + 8, columns 2 (lane % 4) and the next.
template <typename T, int kDim, int kTiles>
__global__ void __launch_bounds__(kThreads, 2) infonce_parts_kernel(const __grid_constant__ InfoNceArgs args) {
  using Kernel = PartsKernel<T, kDim, kTiles>;
  constexpr int kColumns = Kernel::kColumns;
  T* queries = reinterpret_cast<T*>(dynamic_shared());
  T* tiles = queries + Kernel::kRows * kDim;
  int64_t* query_groups = reinterpret_cast<int64_t*>(tiles + 2 * kColumns * kDim);
  int64_t* tile_groups = query_groups + Kernel::kRows;

  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int64_t n = args.n, dim = args.ring.dim;
  const int64_t part = blockIdx.y, first_query = static_cast<int64_t>(blockIdx.x) * Kernel::kRows;
  const int own_row = warp * kTiles * 16 + lane / 4;  // of the block's queries, the lane's first one

  // The ring row of a tile's first key, and how many keys are left from there.
  const RingState state = ring_checked(*args.ring.state, args.ring.rows);
  const int rows = static_cast<int>(args.ring.rows), count = static_cast<int>(state.count);
  const int64_t all_tiles = ceil_div(count, kColumns);
  const int begin = static_cast<int>(all_tiles * part / args.parts) * kColumns;
  const int end = static_cast<int>(all_tiles * (part + 1) / args.parts) * kColumns;
  int ring_at = ring_row(static_cast<int>(ring_first(state.cursor, state.count, args.ring.rows)), begin, rows);
  int left = min(end, count) - begin;

  const T* query = static_cast<const T*>(args.query);
#pragma unroll 1
  for (unsigned i = thread; i < Kernel::kRows * Kernel::kChunks; i += kThreads) {
    const int row = i / Kernel::kChunks, chunk = i % Kernel::kChunks;
    const bool valid = first_query + row < n && chunk * 8 < dim;
    cp_async_16(queries + Kernel::at(row, chunk), valid ? query + (first_query + row) * dim + chunk * 8 : query, valid);
  }
  const auto load = [&](int buffer) {
    const T* ring = static_cast<const T*>(args.ring.keys);
    T* to = tiles + buffer * kColumns * kDim;
#pragma unroll 1
    for (unsigned i = thread; i < kColumns * Kernel::kChunks; i += kThreads) {
      const int row = i / Kernel::kChunks, chunk = i % Kernel::kChunks;
      const bool valid = row < left && chunk * 8 < dim;
      cp_async_16(to + Kernel::at(row, chunk), valid ? ring + ring_row(ring_at, row, rows) * dim + chunk * 8 : ring,
                  valid);
    }
    cp_async_commit();
  };
  const auto load_group = [&]() {
    const bool valid = thread < kColumns && thread < left;
    return valid ? args.ring.groups[ring_row(ring_at, thread, rows)] : 0;
  };

  if (thread < Kernel::kRows) query_groups[thread] = first_query + thread < n ? args.groups[first_query + thread] : 0;
  const int64_t* own_groups = query_groups + own_row;

  float max[kTiles][2], sum[kTiles][2] = {}, weighted[kTiles][kDim / 8][4] = {};
#pragma unroll
  for (int t = 0; t < kTiles; ++t) max[t][0] = max[t][1] = -INFINITY;

  // What a lane names to ldmatrix, of every 16 rows and two chunks: row lane % 16, chunk 2k + lane / 16. k = 0 .. 3;
  // the rest of an address is a constant.
  int offsets[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) offsets[k] = Kernel::at(lane % 16, 2 * k + lane / 16);
  const T* own_queries = queries + warp * kTiles * 16 * kDim;

  load(0);
  if (thread < kColumns) tile_groups[thread] = load_group();
#pragma unroll 1
  for (int buffer = 0; left > 0; buffer = 1 - buffer) {
    const T* keys = tiles + buffer * kColumns * kDim;
    const int64_t* key_groups = tile_groups + buffer * kColumns;
    const int columns = min(left, kColumns);
    cp_async_wait<0>();
    __syncthreads();  // this tile has come, and nobody reads the other buffer any more
    ring_at = ring_row(ring_at, kColumns, rows);
    left -= kColumns;
    if (left > 0) load(1 - buffer);
    const int64_t next_group = load_group();

    // Columns of the query's own group, and past the end in the last tile, begin at -inf and stay there. Hardly a tile
    // has any: the lower half of the groups tells most of the time that there is none.
    float dots[kTiles][kColumns / 8][4] = {};
    bool masked = columns < kColumns;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t own = static_cast<uint32_t>(own_groups[t * 16 + h * 8]);
#pragma unroll
        for (int c = 0; c < kColumns / 8; ++c) {
          const uint4 pair = *reinterpret_cast<const uint4*>(key_groups + c * 8 + lane % 4 * 2);
          masked |= (pair.x == own) | (pair.z == own);
        }
      }
    }
    if (__any_sync(kFullWarp, masked)) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int64_t own = own_groups[t * 16 + h * 8];
#pragma unroll
          for (int c = 0; c < kColumns / 8; ++c) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const bool past = c * 8 + e >= columns - lane % 4 * 2;
              if (past | (key_groups[c * 8 + lane % 4 * 2 + e] == own)) dots[t][c][2 * h + e] = -INFINITY;
            }
          }
        }
      }
    }
#pragma unroll 4
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t a[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) ldmatrix_x4(a[t], own_queries + offsets[k % 4] + k / 4 * 64 + t * 16 * kDim);
#pragma unroll
      for (int c = 0; c < kColumns / 16; ++c) {
        uint32_t b[4];
        ldmatrix_x4(b, keys + offsets[k % 4] + k / 4 * 64 + c * 16 * kDim);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          mma_m16n8k16<T>(dots[t][2 * c], a[t], b[0], b[2]);
          mma_m16n8k16<T>(dots[t][2 * c + 1], a[t], b[1], b[3]);
        }
      }
    }

    // The running maxima, where one of the warp's moved, and the weights, in the layout in which the second product
    // takes them as its left operand.
    uint32_t weights[kTiles][kColumns / 8][2];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float top = max[t][h];
#pragma unroll
        for (int c = 0; c < kColumns / 8; ++c) top = fmaxf(top, fmaxf(dots[t][c][2 * h], dots[t][c][2 * h + 1]));
        top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
        top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
        if (__any_sync(kFullWarp, top > max[t][h])) {
          const float rescale = softmax_rescale(max[t][h], top, args.scale);
          max[t][h] = top;
          sum[t][h] *= rescale;
#pragma unroll
          for (int c = 0; c < kDim / 8; ++c) {
            weighted[t][c][2 * h] *= rescale;
            weighted[t][c][2 * h + 1] *= rescale;
          }
        }
        const float shift = softmax_shift(max[t][h], args.scale);
#pragma unroll
        for (int c = 0; c < kColumns / 8; ++c) {
          const float low = softmax_weight(dots[t][c][2 * h], shift, args.scale);
          const float high = softmax_weight(dots[t][c][2 * h + 1], shift, args.scale);
          sum[t][h] += low + high;
          weights[t][c][h] = pack<T>(low, high);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kColumns / 16; ++k) {
#pragma unroll
      for (int c = 0; c < kDim / 16; ++c) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, keys + offsets[c % 4] + c / 4 * 64 + k * 16 * kDim);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const uint32_t a[4] = {weights[t][2 * k][0], weights[t][2 * k][1], weights[t][2 * k + 1][0],
                                 weights[t][2 * k + 1][1]};
          mma_m16n8k16<T>(weighted[t][2 * c], a, b[0], b[1]);
          mma_m16n8k16<T>(weighted[t][2 * c + 1], a, b[2], b[3]);
        }
      }
    }
    if (thread < kColumns) tile_groups[(1 - buffer) * kColumns + thread] = next_group;
  }

#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float total = sum[t][h];
      total += __shfl_xor_sync(kFullWarp, total, 1);
      total += __shfl_xor_sync(kFullWarp, total, 2);
      const int row = own_row + t * 16 + h * 8;
      if (row >= n - first_query) continue;
      const int64_t at = part * n + first_query + row;
      if (lane % 4 == 0) {
        args.max[at] = max[t][h];
        args.sum[at] = total;
      }
#pragma unroll
      for (int c = 0; c < kDim / 8; ++c) {
        if (c * 8 >= dim) continue;
        float2* to = reinterpret_cast<float2*>(args.weighted + at * dim + c * 8 + lane % 4 * 2);
        *to = make_float2(weighted[t][c][2 * h], weighted[t][c][2 * h + 1]);
      }
    }
  }
}

// One wave of two blocks a multiprocessor. Their states, 64 KB each with 128 queries of 128 columns, are 17 MB on an
// H200 and stay in its L2 until infonce_finish_kernel reads them.
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int64_t kMaxFusedDim = 256, kMaxFusedRows = 1 << 30;  // row numbers are 32 bits there

constexpr int64_t queries_of_block(int64_t n, int64_t dim) { return n > 64 && dim <= 128 ? 128 : 64; }

template <typename T, int kDim, int kTiles>
Status launch_parts(const Context& context, const InfoNceArgs& args) {
  using Kernel = PartsKernel<T, kDim, kTiles>;
  const dim3 grid(static_cast<unsigned>(ceil_div(args.n, Kernel::kRows)), static_cast<unsigned>(args.parts));
  return launch(infonce_parts_kernel<T, kDim, kTiles>, grid, dim3(kThreads), Kernel::kSharedBytes, context.stream,
                args);
}

template <typename T>
Status launch_parts(const Context& context, const InfoNceArgs& args) {
  const bool wide = queries_of_block(args.n, args.ring.dim) == 128;
  if (args.ring.dim > 128) return launch_parts<T, 256, 1>(context, args);
  if (args.ring.dim > 64) return wide ? launch_parts<T, 128, 2>(context, args) : launch_parts<T, 128, 1>(context, args);
  return wide ? launch_parts<T, 64, 2>(context, args) : launch_parts<T, 64, 1>(context, args);
}

Status infonce_parts(const Context& context, const InfoNceArgs& args) {
  return args.ring.type == DType::kBFloat16 ? launch_parts<bfloat16>(context, args)
                                            : launch_parts<float16>(context, args);
}

// The parts one after the other, between two matrix products.

constexpr int kWeighThreads = 512;
constexpr int kWeighVectors = 9;  // of 4 columns a thread: a row of the chunk stays in registers
constexpr int64_t kMaxChunkColumns = kWeighThreads * kWeighVectors * 4;  // a quarter of 65,536 + 256 and more
constexpr int64_t kMinChunkColumns = 256;
// Dot products of a chunk: 18 MB, which with the 9 MB of their weights stay in an H200's L2 (50 MB).
constexpr int64_t kChunk = 256 * kMaxChunkColumns;

InfoNcePlan infonce_plan(const Context& context, DType type, int64_t n, int64_t dim, int64_t rows) {
  if (type != DType::kFloat32 && dim <= kMaxFusedDim && rows <= kMaxFusedRows) {
    const int64_t row_blocks = ceil_div(n, queries_of_block(n, dim)), tiles = ceil_div(rows, int64_t{64});
    const int64_t parts = context.multiprocessors * kBlocksPerMultiprocessor / row_blocks;
    return {max(int64_t{1}, min(parts, min(tiles, int64_t{kMaxParts}))), 0, type};
  }
  const int64_t most = max(kMinChunkColumns, min(kChunk / n, kMaxChunkColumns) / 64 * 64);
  return {2, ceil_div(ceil_div(rows, ceil_div(rows, most)), 64) * 64, type};
}

constexpr int kMaskThreads = 256;  // columns of a block
constexpr int kMaskRows = 256;     // its queries

// Dot products with rows that are no negatives become -inf. A thread takes a column: every group of the ring is read
// once for 256 queries.
__global__ void __launch_bounds__(kMaskThreads)
    infonce_mask_kernel(const __grid_constant__ InfoNceArgs args, const __grid_constant__ InfoNceChunk chunk) {
  __shared__ int64_t groups[kMaskRows];
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kMaskRows;
  const int64_t rows = min(args.n - first, int64_t{kMaskRows});
  if (threadIdx.x < rows) groups[threadIdx.x] = args.groups[first + threadIdx.x];
  __syncthreads();
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kMaskThreads + threadIdx.x;
  if (column >= chunk.rows) return;
  const int64_t row = chunk.first_row + column;
  const RingState state = ring_checked(*args.ring.state, args.ring.rows);
  const bool live = ring_live(row, state.cursor, state.count, args.ring.rows);
  const int64_t group = args.ring.groups[row];
  float* dots = chunk.dots + first * chunk.stride + column;
  for (int i = 0; i < rows; ++i, dots += chunk.stride) {
    if (!live || groups[i] == group) *dots = -INFINITY;
  }
}

struct alignas(8) Bits4 {
  uint16_t bits[4];
};

PPA_INLINE void store4(float* to, float4 x) { *reinterpret_cast<float4*>(to) = x; }

template <typename T>
PPA_INLINE void store4(T* to, float4 x) {
  *reinterpret_cast<Bits4*>(to) = {from_float<T>(x.x).bits, from_float<T>(x.y).bits, from_float<T>(x.z).bits,
                                   from_float<T>(x.w).bits};
}

PPA_INLINE float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }

template <typename T>
PPA_INLINE float4 load4(const T* from) {
  const Bits4 x = *reinterpret_cast<const Bits4*>(from);
  return make_float4(to_float(T{x.bits[0]}), to_float(T{x.bits[1]}), to_float(T{x.bits[2]}), to_float(T{x.bits[3]}));
}

PPA_INLINE float4 scale4(float a, float4 x) { return make_float4(a * x.x, a * x.y, a * x.z, a * x.w); }

PPA_INLINE float4 fma4(float a, float4 x, float4 y) {
  return make_float4(fmaf(a, x.x, y.x), fmaf(a, x.y, y.y), fmaf(a, x.z, y.z), fmaf(a, x.w, y.w));
}

// A block takes a query: the chunk before joins part 0, this one's row of dot products becomes weights.
template <typename W>
__global__ void __launch_bounds__(kWeighThreads)
    infonce_weigh_kernel(const __grid_constant__ InfoNceArgs args, const __grid_constant__ InfoNceChunk chunk) {
  __shared__ float maxima[kWeighThreads / 32], sums[kWeighThreads / 32];
  const int64_t query = blockIdx.x, last = args.n + query, vectors = args.ring.dim / 4;
  Softmax joined = kNoNegatives;
  if (chunk.first) {
    for (int64_t v = threadIdx.x; v < vectors; v += kWeighThreads) {
      store4(args.weighted + (query * vectors + v) * 4, make_float4(0, 0, 0, 0));
    }
  } else {
    const Softmax a = {args.max[query], args.sum[query]}, b = {args.max[last], args.sum[last]};
    joined.max = fmaxf(a.max, b.max);
    const float of_a = softmax_rescale(a.max, joined.max, args.scale);
    const float of_b = softmax_rescale(b.max, joined.max, args.scale);
    joined.sum = of_a * a.sum + of_b * b.sum;
    for (int64_t v = threadIdx.x; v < vectors; v += kWeighThreads) {
      float* to = args.weighted + (query * vectors + v) * 4;
      store4(to, fma4(of_b, load4(args.weighted + (last * vectors + v) * 4), scale4(of_a, load4(to))));
    }
  }

  const float* dots = chunk.dots + query * chunk.stride;
  W* weights = static_cast<W*>(chunk.weights) + query * chunk.stride;
  float4 x[kWeighVectors];
  float max = -INFINITY;
#pragma unroll
  for (int v = 0; v < kWeighVectors; ++v) {
    const int64_t column = (v * kWeighThreads + threadIdx.x) * 4;
    x[v] = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    if (column >= chunk.rows) continue;
    x[v] = load4(dots + column);
    if (column + 1 >= chunk.rows) x[v].y = -INFINITY;
    if (column + 2 >= chunk.rows) x[v].z = -INFINITY;
    if (column + 3 >= chunk.rows) x[v].w = -INFINITY;
    max = fmaxf(fmaxf(fmaxf(max, x[v].x), fmaxf(x[v].y, x[v].z)), x[v].w);
  }
  max = reduce_block<true>(max, maxima);
  const float shift = softmax_shift(max, args.scale);
  float sum = 0;
#pragma unroll
  for (int v = 0; v < kWeighVectors; ++v) {
    const int64_t column = (v * kWeighThreads + threadIdx.x) * 4;
    if (column >= chunk.rows) continue;
    const float4 weight =
        make_float4(softmax_weight(x[v].x, shift, args.scale), softmax_weight(x[v].y, shift, args.scale),
                    softmax_weight(x[v].z, shift, args.scale), softmax_weight(x[v].w, shift, args.scale));
    sum += (weight.x + weight.y) + (weight.z + weight.w);
    store4(weights + column, weight);
  }
  sum = reduce_block<false>(sum, sums);
  if (threadIdx.x > 0) return;
  args.max[query] = joined.max;
  args.sum[query] = joined.sum;
  args.max[last] = max;
  args.sum[last] = sum;
}

Status infonce_chunk(const Context& context, const InfoNceArgs& args, const InfoNceChunk& chunk) {
  const dim3 grid(static_cast<unsigned>(ceil_div(chunk.rows, kMaskThreads)),
                  static_cast<unsigned>(ceil_div(args.n, kMaskRows)));
  const Status status = launch(infonce_mask_kernel, grid, dim3(kMaskThreads), 0, context.stream, args, chunk);
  if (status != nullptr) return status;
  return with_type(args.ring.type, [&](auto stored) {
    return launch(infonce_weigh_kernel<decltype(stored)>, dim3(static_cast<unsigned>(args.n)), dim3(kWeighThreads), 0,
                  context.stream, args, chunk);
  });
}

// What the parts and the positive come to.

constexpr int kFinishThreads = 256;

// A block takes a query. Its threads share the columns, four each, and the parts; with 128 columns 8 warps read 8 parts
// at a time, 512 bytes each.
template <typename T>
__global__ void __launch_bounds__(kFinishThreads, 4) infonce_finish_kernel(const __grid_constant__ InfoNceArgs args) {
  __shared__ float factors[kMaxParts];
  __shared__ float maxima[kFinishThreads / 32], sums[kFinishThreads / 32], dots[kFinishThreads / 32];
  __shared__ float4 partial[kFinishThreads];
  const int64_t query = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), parts = static_cast<int>(args.parts);
  const int vectors = static_cast<int>(args.ring.dim / 4), rows = kFinishThreads / vectors;
  const T* key = static_cast<const T*>(args.positive) + query * args.ring.dim;

  float max = -INFINITY, sum = 0, dot = 0;
  for (int p = thread; p < parts; p += kFinishThreads) max = fmaxf(max, args.max[p * args.n + query]);
  max = reduce_block<true>(max, maxima);
  for (int p = thread; p < parts; p += kFinishThreads) {
    factors[p] = softmax_rescale(args.max[p * args.n + query], max, args.scale);
    sum += factors[p] * args.sum[p * args.n + query];
  }
  sum = reduce_block<false>(sum, sums);
  if (thread < vectors) {
    const float4 q = load4(static_cast<const T*>(args.query) + query * args.ring.dim + thread * 4);
    const float4 k = load4(key + thread * 4);
    dot = fmaf(q.x, k.x, fmaf(q.y, k.y, fmaf(q.z, k.z, q.w * k.w)));
  }
  dot = reduce_block<false>(dot, dots);

  const int column = thread % vectors, row = thread / vectors;
  float4 weighted = make_float4(0, 0, 0, 0);
  if (row < rows) {
#pragma unroll 8
    for (int p = row; p < parts; p += rows) {
      weighted = fma4(factors[p], load4(args.weighted + ((p * args.n + query) * vectors + column) * 4), weighted);
    }
  }
  partial[thread] = weighted;
  __syncthreads();
  const InfoNce result = infonce_of({max, sum}, dot, args.scale);
  if (thread == 0) {
    args.loss[query] = result.loss;
    args.top1[query] = result.top1;
  }
  if (thread < vectors) {
    for (int r = 1; r < rows; ++r) weighted = fma4(1, partial[r * vectors + thread], weighted);
    const float4 gradient = fma4(-result.key_factor, load4(key + thread * 4), scale4(result.weighted_factor, weighted));
    store4(args.dq + (query * vectors + thread) * 4, scale4(args.inverse_temperature, gradient));
  }
  if (args.positions != nullptr && thread < 32) {
    enqueue_key<T, T>(args.ring, key, args.groups[query], args.positions[query]);
  }
}

Status infonce_finish(const Context& context, const InfoNceArgs& args) {
  return with_type(args.ring.type, [&](auto stored) {
    return launch(infonce_finish_kernel<decltype(stored)>, dim3(static_cast<unsigned>(args.n)), dim3(kFinishThreads), 0,
                  context.stream, args);
  });
}

}  // namespace ppa::cuda
