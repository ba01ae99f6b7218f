// The last step of InfoNCE: computes the loss and its gradient from the states of all parts and the positive.

#include "cuda/infonce.cuh"
#include "cuda/reduce.cuh"
#include "cuda/ring.cuh"
#include "cuda/vector.cuh"
#include "ppa/infonce.h"

namespace ppa::cuda {

constexpr int kFinishThreads = 256;

// One block per query. Its threads divide the columns, four per thread, and the parts: with 128 columns 8 warps read 8
// parts at a time, 512 bytes each. More than 1,024 columns are processed 1,024 at a time.
template <typename T>
__global__ void __launch_bounds__(kFinishThreads, 4) infonce_finish_kernel(const __grid_constant__ InfoNceArgs args) {
  __shared__ float factors[kMaxInfoNceParts];
  __shared__ Softmax states[kFinishThreads / 32];
  __shared__ float dots[kFinishThreads / 32];
  __shared__ float4 partial[kFinishThreads];
  const int64_t query = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), parts = static_cast<int>(args.parts);
  const int vectors = static_cast<int>(args.ring.dim / 4), width = min(vectors, kFinishThreads);
  const int rows = kFinishThreads / width;
  const T* key = static_cast<const T*>(args.positive) + query * args.ring.dim;

  const auto merge = [&](Softmax a, Softmax b) { return softmax_merge(a, b, args.scale).state; };
  Softmax negatives = kNoNegatives;
  for (int p = thread; p < parts; p += kFinishThreads) {
    negatives = merge(negatives, {args.max[p * args.n + query], args.sum[p * args.n + query]});
  }
  negatives = reduce_block(negatives, states, merge);
  for (int p = thread; p < parts; p += kFinishThreads) {
    factors[p] = softmax_rescale(args.max[p * args.n + query], negatives.max, args.scale);
  }
  float dot = 0;
#pragma unroll 1  // one iteration up to 1,024 columns; unrolled, the fp32 kernel spills registers
  for (int v = thread; v < vectors; v += kFinishThreads) {
    const float4 q = load4(static_cast<const T*>(args.query) + query * args.ring.dim + v * 4);
    const float4 k = load4(key + v * 4);
    dot += fmaf(q.x, k.x, fmaf(q.y, k.y, fmaf(q.z, k.z, q.w * k.w)));
  }
  dot = reduce_block(dot, dots, Sum{});  // after its barrier all threads see the factors

  const InfoNce result = infonce_of(negatives, dot, args.scale);
  if (thread == 0) {
    args.loss[query] = result.loss;
    args.top1[query] = result.top1;
  }
  const int row = thread / width;
  for (int first = 0; first < vectors; first += width) {
    const int column = first + thread % width;
    float4 weighted = make_float4(0, 0, 0, 0);
    if (row < rows && column < vectors) {
#pragma unroll 8
      for (int p = row; p < parts; p += rows) {
        weighted = fma4(factors[p], load4(args.weighted + ((p * args.n + query) * vectors + column) * 4), weighted);
      }
    }
    partial[thread] = weighted;
    __syncthreads();  // no second barrier: if there is another pass, each thread reads only its own sum
    if (row == 0 && column < vectors) {
      for (int r = 1; r < rows; ++r) weighted = fma4(1, partial[r * width + thread], weighted);
      const float4 gradient =
          fma4(-result.key_factor, load4(key + column * 4), scale4(result.weighted_factor, weighted));
      store4(args.dq + (query * vectors + column) * 4, scale4(args.inverse_temperature, gradient));
    }
  }
  if (args.step_indices != nullptr && thread < 32) {
    enqueue_key<T, T>(args.ring, key, args.groups[query], args.step_indices[query]);
  }
}

Status infonce_finish(const Context& context, const InfoNceArgs& args) {
  return with_type(args.ring.type, [&](auto stored) {
    return launch(infonce_finish_kernel<decltype(stored)>, dim3(static_cast<unsigned>(args.n)), dim3(kFinishThreads), 0,
                  context.stream, args);
  });
}

}  // namespace ppa::cuda
