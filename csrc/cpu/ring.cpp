#include "ppa/ring.h"

#include <algorithm>

#include "ppa/operations.h"

namespace ppa::cpu {

namespace {

constexpr int64_t kGrain = 1 << 14;  // minimum elements per thread

// Returns whether the key was accepted.
template <typename Key, typename T>
bool write_key(const Ring& ring, RingState state, const Key* key, int64_t group, int64_t position) {
  if (!ring_pending(position, state.count, ring.rows)) return false;
  for (int64_t d = 0; d < ring.dim; ++d) {
    if (!ring_accepts<T>(to_float(key[d]))) return false;
  }
  const int64_t row = ring_row(state.cursor, position, ring.rows);
  T* to = static_cast<T*>(ring.keys) + row * ring.dim;
  for (int64_t d = 0; d < ring.dim; ++d) to[d] = from_float<T>(to_float(key[d]));
  ring.groups[row] = group;
  return true;
}

template <typename Key, typename T>
void write_keys(const Context& context, const EnqueueArgs& args) {
  const RingState state = ring_checked(*args.ring.state, args.ring.rows);
  const Key* keys = static_cast<const Key*>(args.keys);
  parallel(context, args.n, ceil_div(kGrain, std::max<int64_t>(args.ring.dim, 1)), [&](int64_t begin, int64_t end) {
    int64_t refused = 0;
    for (int64_t i = begin; i < end; ++i) {
      refused += !write_key<Key, T>(args.ring, state, keys + i * args.ring.dim, args.groups[i], args.step_indices[i]);
    }
    if (refused) __atomic_fetch_add(&args.ring.state->refused, refused, __ATOMIC_RELAXED);
  });
}

}  // namespace

Status enqueue(const Context& context, const EnqueueArgs& args) {
  with_type(args.ring.type, [&](auto stored) {
    using T = decltype(stored);
    if (args.keys_type == args.ring.type) {
      write_keys<T, T>(context, args);
    } else {
      write_keys<float, T>(context, args);
    }
  });
  return nullptr;
}

Status commit(const Context&, RingState* state, int64_t written, int64_t size, int64_t rows) {
  *state = ring_commit(ring_checked(*state, rows), written, size, rows);
  return nullptr;
}

}  // namespace ppa::cpu
