// The kernels of the ring. `enqueue` writes keys to pending rows, and `commit` makes these rows live.

#include "cuda/ring.cuh"

namespace ppa::cuda {

constexpr int kEnqueueThreads = 128;

template <typename Key, typename T>
__global__ void __launch_bounds__(kEnqueueThreads) enqueue_kernel(const __grid_constant__ EnqueueArgs args) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kEnqueueThreads + threadIdx.x) / 32;
  if (i >= args.n) return;
  const Key* key = static_cast<const Key*>(args.keys) + i * args.ring.dim;
  enqueue_key<Key, T>(args.ring, key, args.groups[i], args.step_indices[i]);
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

}  // namespace ppa::cuda
