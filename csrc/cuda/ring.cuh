// Writes one key to the ring (ppa/ring.h).
#pragma once

#include "cuda/device.cuh"
#include "cuda/reduce.cuh"
#include "ppa/operations.h"
#include "ppa/ring.h"

namespace ppa::cuda {

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

}  // namespace ppa::cuda
