// InfoNCE for wide rows and for fp32. It processes the ring in chunks, between two matrix products of cuBLAS.

#include "cuda/device.cuh"
#include "cuda/infonce.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "ppa/infonce.h"
#include "ppa/operations.h"
#include "ppa/ring.h"

namespace ppa::cuda {

// Queries per block: two, which share one read of the groups of the ring. A group takes 8 bytes per column (a dot
// product 4).
constexpr int kWeighQueries = 2;

// Block b processes query b and, if it exists, query b + gridDim.x. It merges the previous chunk into part 0, and turns
// the dot products of this chunk into weights of type W. The weights overwrite the dot products, from the start of each
// row.
template <typename W>
__global__ void __launch_bounds__(kWeighThreads, 1)
    infonce_weigh_kernel(const __grid_constant__ InfoNceArgs args, const __grid_constant__ InfoNceChunk chunk) {
  __shared__ float maxima[kWeighThreads / 32], sums[kWeighThreads / 32];
  const int thread = static_cast<int>(threadIdx.x), columns = static_cast<int>(chunk.rows);
  const int64_t vectors = args.ring.dim / 4;

  // Bit v: whether column v * kWeighThreads + thread is a negative of the query.
  uint32_t negatives[kWeighQueries][(kWeighVectors + 31) / 32] = {};
  const RingState state = ring_checked(*args.ring.state, args.ring.rows);
  int64_t own_groups[kWeighQueries];
#pragma unroll
  for (int q = 0; q < kWeighQueries; ++q) {
    own_groups[q] = args.groups[min(static_cast<int64_t>(blockIdx.x) + q * int64_t{gridDim.x}, args.n - 1)];
  }
#pragma unroll
  for (int v = 0; v < kWeighVectors; ++v) {
    const int column = v * kWeighThreads + thread;
    if (column >= columns) continue;
    const int64_t row = chunk.first_row + column, group = args.ring.groups[row];
    const bool live = ring_live(row, state.cursor, state.count, args.ring.rows);
#pragma unroll
    for (int q = 0; q < kWeighQueries; ++q) {
      negatives[q][v / 32] |= static_cast<uint32_t>(live && group != own_groups[q]) << v % 32;
    }
  }

#pragma unroll
  for (int q = 0; q < kWeighQueries; ++q) {
    const int64_t query = blockIdx.x + q * int64_t{gridDim.x}, last = args.n + query;
    if (query >= args.n) break;
    SoftmaxMerge merged{kNoNegatives, 0, 0};
    if (chunk.first) {
      for (int64_t v = thread; v < vectors; v += kWeighThreads) {
        store4(args.weighted + (query * vectors + v) * 4, make_float4(0, 0, 0, 0));
      }
    } else {
      merged = softmax_merge({args.max[query], args.sum[query]}, {args.max[last], args.sum[last]}, args.scale);
      for (int64_t v = thread; v < vectors; v += kWeighThreads) {
        float* to = args.weighted + (query * vectors + v) * 4;
        store4(to, fma4(merged.of_b, load4(args.weighted + (last * vectors + v) * 4), scale4(merged.of_a, load4(to))));
      }
    }

    const float* dots = chunk.dots + query * chunk.stride;
    float x[kWeighVectors];
#pragma unroll
    for (int v = 0; v < kWeighVectors; ++v) {
      x[v] = negatives[q][v / 32] >> v % 32 & 1 ? dots[v * kWeighThreads + thread] : -INFINITY;
    }
    float max = -INFINITY;
#pragma unroll
    for (int v = 0; v < kWeighVectors; ++v) max = fmaxf(max, x[v]);
    max = reduce_block(max, maxima, Max{});  // after its barrier no dot product is read

    const float shift = softmax_shift(max, args.scale);
    W* weights = reinterpret_cast<W*>(chunk.dots + query * chunk.stride);
    float sum = 0;
#pragma unroll
    for (int v = 0; v < kWeighVectors; ++v) {
      const int column = v * kWeighThreads + thread;
      if (column >= columns) continue;
      const float weight = softmax_weight(x[v], shift, args.scale);
      sum += weight;
      weights[column] = from_float<W>(weight);
    }
    sum = reduce_block(sum, sums, Sum{});
    if (thread > 0) continue;
    args.max[query] = merged.state.max;
    args.sum[query] = merged.state.sum;
    args.max[last] = max;
    args.sum[last] = sum;
  }
}

Status infonce_chunk(const Context& context, const InfoNceArgs& args, const InfoNceChunk& chunk) {
  const int64_t blocks = args.n <= context.multiprocessors ? args.n : ceil_div(args.n, kWeighQueries);
  return with_type(args.ring.type, [&](auto stored) {
    return launch(infonce_weigh_kernel<decltype(stored)>, dim3(static_cast<unsigned>(blocks)), dim3(kWeighThreads), 0,
                  context.stream, args, chunk);
  });
}

}  // namespace ppa::cuda
