// Reductions over a block.
#pragma once

#include "cuda/device.cuh"

namespace ppa::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;

// __shfl_xor_sync and __shfl_sync for a struct of floats.
template <typename T>
__device__ __forceinline__ T shuffle_xor(T value, int lanes) {
  uint32_t words[sizeof(T) / 4];
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (uint32_t& word : words) word = __shfl_xor_sync(kFullWarp, word, lanes);
  memcpy(&value, words, sizeof(T));
  return value;
}

template <typename T>
__device__ __forceinline__ T shuffle_first(T value) {
  uint32_t words[sizeof(T) / 4];
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (uint32_t& word : words) word = __shfl_sync(kFullWarp, word, 0);
  memcpy(&value, words, sizeof(T));
  return value;
}

// Reduces the values of a block of 32 kWarps threads with `combine`; kWarps is a power of two. The order depends on
// kWarps only, and every thread receives the same bits. Between this call and the next use of `shared` there must be a
// barrier.
template <int kWarps, typename T, typename Combine>
__device__ __forceinline__ T reduce_block(T value, T (&shared)[kWarps], const Combine& combine) {
  static_assert(kWarps <= 32 && (kWarps & (kWarps - 1)) == 0);
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value = combine(value, shuffle_xor(value, lanes));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared[threadIdx.x % kWarps];
#pragma unroll
  for (int lanes = kWarps / 2; lanes > 0; lanes /= 2) value = combine(value, shuffle_xor(value, lanes));
  return shuffle_first(value);  // a contracted a b + c d is not symmetric, so lanes may differ in the last bit
}

struct Max {
  PPA_INLINE float operator()(float a, float b) const { return fmaxf(a, b); }
};

struct Sum {
  PPA_INLINE float operator()(float a, float b) const { return a + b; }
};

}  // namespace ppa::cuda
