// InfoNCE for 16-bit types and up to 256 columns: attention whose keys and values are both the ring. The structure is
// that of FlashAttention-2: a tile of the ring in shared memory serves both products, and the dot products stay in
// registers. The ring is split over blocks; infonce_finish_kernel merges their states in a fixed order.
// infonce_chunk.cu handles wider rows, which do not fit into the registers, and fp32, which needs more precision than
// tensor cores have.

#include "cuda/device.cuh"
#include "cuda/infonce.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "ppa/infonce.h"
#include "ppa/operations.h"
#include "ppa/ring.h"

namespace ppa::cuda {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;

// The index of a 16-byte chunk (8 elements) in a tile. Within each group of eight chunks the order depends on the row
// index, so that equal chunks of eight rows lie in different banks.
template <int kDim>
PPA_INLINE int chunk_at(int row, int chunk) {
  return row * kDim + chunk / 8 * 64 + ((chunk ^ row) % 8) * 8;
}

// Copies rows to shared memory, and zeros where the matrix has no row or column. A thread copies the same 16 bytes of
// every (kThreads / kChunks)-th row, so that only the address of the row is computed in the loop.
template <typename T, int kDim, int kRows>
struct TileCopy {
  static constexpr int kChunks = kDim / 8;  // per row
  static constexpr int kStep = kThreads / kChunks;
  static_assert(kRows % kStep == 0);

  const T* from;    // this thread's chunk in row 0 of the matrix
  uint32_t chunks;  // per row of the matrix
  int row, chunk;

  PPA_INLINE TileCopy(const void* matrix, int64_t dim, int thread)
      : from(static_cast<const T*>(matrix) + thread % kChunks * 8),
        chunks(static_cast<uint32_t>(dim / 8)),
        row(thread / kChunks),
        chunk(thread % kChunks) {}

  // Starts the copies of the first `count` rows of the tile. row_of(r) returns the matrix row for tile row `row + r`.
  template <typename RowOf>
  PPA_INLINE void start(T* tile, int count, const RowOf& row_of) const {
    const int valid = chunk < static_cast<int>(chunks) ? count - row : 0;
#pragma unroll
    for (int r = 0; r < kRows; r += kStep) {
      T* to = tile + chunk_at<kDim>(row + r % 8, chunk) + (r - r % 8) * kDim;  // period of the permutation: 8 rows
      const uint32_t at = static_cast<uint32_t>(row_of(r)) * chunks;
      cp_async_16(to, from + int64_t{8} * at, r < valid);
    }
  }
};

// Block (queries, part) computes the state of these queries over this part of the live rows, which are counted from the
// oldest. In a 16 x 8 tile of products, a lane holds rows lane / 4 and lane / 4 + 8, columns 2 (lane % 4) and 2 (lane %
// 4) + 1.
template <typename T, int kDim, int kQueries, int kKeys, int kStages>
__global__ void __launch_bounds__(kThreads, kInfoNceBlocks)
    infonce_parts_kernel(const __grid_constant__ InfoNceArgs args) {
  constexpr int kTiles = kQueries / (kWarps * 16);  // of 16 queries, per warp
  T* queries = reinterpret_cast<T*>(dynamic_shared());
  T* tiles = queries + kQueries * kDim;
  int64_t* query_groups = reinterpret_cast<int64_t*>(tiles + kStages * kKeys * kDim);
  int64_t* tile_groups = query_groups + kQueries;

  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int64_t n = args.n, dim = args.ring.dim;
  const int64_t part = blockIdx.y, first_query = static_cast<int64_t>(blockIdx.x) * kQueries;
  const int own_row = warp * kTiles * 16 + lane / 4;  // the lane's first query, within the block

  // ring_at: the ring row of the first key of the next tile to load. left: the number of keys that are not yet
  // multiplied.
  const RingState state = ring_checked(*args.ring.state, args.ring.rows);
  const int rows = static_cast<int>(args.ring.rows), count = static_cast<int>(state.count);
  const int64_t all_tiles = ceil_div(count, kKeys);
  const int begin = static_cast<int>(all_tiles * part / args.parts) * kKeys;
  const int end = static_cast<int>(all_tiles * (part + 1) / args.parts) * kKeys;
  int ring_at = ring_row(static_cast<int>(ring_first(state.cursor, state.count, args.ring.rows)), begin, rows);
  int left = min(end, count) - begin;

  const int queries_here = static_cast<int>(min(n - first_query, int64_t{kQueries}));
  const T* query = static_cast<const T*>(args.query) + first_query * dim;
  const TileCopy<T, kDim, kQueries> copy_queries(query, dim, thread);
  copy_queries.start(queries, queries_here, [&](int r) { return copy_queries.row + r; });
  if (thread < kQueries) query_groups[thread] = thread < queries_here ? args.groups[first_query + thread] : 0;
  const int64_t* own_groups = query_groups + own_row;

  const TileCopy<T, kDim, kKeys> copy_keys(args.ring.keys, dim, thread);
  const auto load = [&](int stage, int keys) {  // loads the next tile, which has `keys` keys
    if (keys > 0) {
      const int first = ring_row(ring_at, copy_keys.row, rows);
      copy_keys.start(tiles + stage * kKeys * kDim, keys, [&](int r) { return ring_row(first, r, rows); });
      if (thread < kKeys) {
        const int64_t* group = args.ring.groups + ring_row(ring_at, thread, rows);
        cp_async_8(tile_groups + stage * kKeys + thread, group, thread < keys);
      }
      ring_at = ring_row(ring_at, kKeys, rows);
    }
    cp_async_commit();  // also without copies, because cp_async_wait counts groups
  };

  float max[kTiles][2], sum[kTiles][2] = {}, weighted[kTiles][kDim / 8][4] = {};
#pragma unroll
  for (int t = 0; t < kTiles; ++t) max[t][0] = max[t][1] = -INFINITY;

  // The address that a lane passes to ldmatrix, for each 16 rows and two chunks. by_columns orders the four 8 x 8 tiles
  // by columns, for the left operand and for the transposed right operand. by_rows orders them by rows, for the right
  // operand, so that the two registers of one product are adjacent, as the instruction requires. pair(first, k) moves
  // the address to the chunks 2k and 2k + 1; within a group of 8 chunks this is an exclusive-or.
  const int by_columns = chunk_at<kDim>(lane % 16, lane / 16);
  const int by_rows = chunk_at<kDim>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  const auto pair = [](int first, int k) { return (first ^ k % 4 * 16) + k / 4 * 64; };
  const T* own_queries = queries + warp * kTiles * 16 * kDim;

#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) load(stage, left - stage * kKeys);
#pragma unroll 1
  for (int stage = 0; left > 0; left -= kKeys, stage = stage + 1 < kStages ? stage + 1 : 0) {
    const T* keys = tiles + stage * kKeys * kDim;
    const int64_t* key_groups = tile_groups + stage * kKeys;
    cp_async_wait<kStages - 2>();
    __syncthreads();  // this tile is loaded, and no thread reads the previous one
    load(stage > 0 ? stage - 1 : kStages - 1, left - (kStages - 1) * kKeys);

    float dots[kTiles][kKeys / 8][4] = {};
#pragma unroll 4
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t a[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) ldmatrix_x4(a[t], own_queries + pair(by_columns, k) + t * 16 * kDim);
#pragma unroll
      for (int c = 0; c < kKeys / 16; ++c) {
        uint32_t b[4];
        ldmatrix_x4(b, keys + pair(by_rows, k) + c * 16 * kDim);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          mma_m16n8k16<T>(dots[t][2 * c], a[t], b[0], b[1]);
          mma_m16n8k16<T>(dots[t][2 * c + 1], a[t], b[2], b[3]);
        }
      }
    }

    // Sets columns of the query's own group, and columns past the end of the last tile, to -inf. Most tiles have
    // neither; comparing the lower halves of the groups is a cheap check for that.
    bool masked = left < kKeys;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t own = static_cast<uint32_t>(own_groups[t * 16 + h * 8]);
#pragma unroll
        for (int c = 0; c < kKeys / 8; ++c) {
          const uint4 two = *reinterpret_cast<const uint4*>(key_groups + c * 8 + lane % 4 * 2);
          masked |= (two.x == own) | (two.z == own);
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
          for (int c = 0; c < kKeys / 8; ++c) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const bool past = c * 8 + e >= left - lane % 4 * 2;
              if (past | (key_groups[c * 8 + lane % 4 * 2 + e] == own)) dots[t][c][2 * h + e] = -INFINITY;
            }
          }
        }
      }
    }

    // Updates the running maxima (if one of the warp changed), and computes the weights in the layout of the left
    // operand of the second product.
    uint32_t weights[kTiles][kKeys / 8][2];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float top = max[t][h];
#pragma unroll
        for (int c = 0; c < kKeys / 8; ++c) top = fmaxf(top, fmaxf(dots[t][c][2 * h], dots[t][c][2 * h + 1]));
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
        for (int c = 0; c < kKeys / 8; ++c) {
          const float low = softmax_weight(dots[t][c][2 * h], shift, args.scale);
          const float high = softmax_weight(dots[t][c][2 * h + 1], shift, args.scale);
          sum[t][h] += low + high;
          weights[t][c][h] = pack2<T>(low, high);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
      for (int c = 0; c < kDim / 16; ++c) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, keys + pair(by_columns, c) + k * 16 * kDim);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const uint32_t a[4] = {weights[t][2 * k][0], weights[t][2 * k][1], weights[t][2 * k + 1][0],
                                 weights[t][2 * k + 1][1]};
          mma_m16n8k16<T>(weighted[t][2 * c], a, b[0], b[1]);
          mma_m16n8k16<T>(weighted[t][2 * c + 1], a, b[2], b[3]);
        }
      }
    }
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

template <typename T, int kTile = 0>
Status launch_tile(const Context& context, const InfoNceArgs& args, int tile) {
  if constexpr (kTile + 1 < kInfoNceTileCount) {
    if (tile > kTile) return launch_tile<T, kTile + 1>(context, args, tile);
  }
  constexpr InfoNceTile kShape = kInfoNceTiles[kTile];
  const dim3 grid(static_cast<unsigned>(ceil_div(args.n, kShape.queries)), static_cast<unsigned>(args.parts));
  return launch(infonce_parts_kernel<T, kShape.dim, kShape.queries, kShape.keys, kShape.stages>, grid, dim3(kThreads),
                kShape.shared_bytes(), context.stream, args);
}

Status infonce_parts(const Context& context, const InfoNceArgs& args) {
  const int tile = infonce_tile(args.n, args.ring.dim);
  return args.ring.type == DType::kBFloat16 ? launch_tile<bfloat16>(context, args, tile)
                                            : launch_tile<float16>(context, args, tile);
}

}  // namespace ppa::cuda
