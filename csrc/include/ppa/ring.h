// The queue of keys: a ring of K live rows and B pending rows. Readers use the live rows, writers the pending rows.
#pragma once

#include "ppa/common.h"

namespace ppa {

// Stored on the device as int64 [3]: the first pending row (the cursor), the number of live rows (they end before the
// cursor), and the number of refused keys: those that were not finite or had no pending row.
struct RingState {
  int64_t cursor, count, refused;
};

// Checks a state that was read from the device. An invalid state counts as an empty ring, so that nothing is read out
// of bounds.
PPA_INLINE RingState ring_checked(RingState state, int64_t rows) {
  const bool sound = state.cursor >= 0 && state.cursor < rows && state.count >= 0 && state.count <= rows;
  return sound ? state : RingState{0, 0, state.refused};
}

// The ring row of the oldest live key. Live key j (0 is the oldest) is in ring_row(ring_first(...), j, rows).
PPA_INLINE int64_t ring_first(int64_t cursor, int64_t count, int64_t rows) {
  return cursor >= count ? cursor - count : cursor - count + rows;
}

// Whether a step index has a pending row.
PPA_INLINE bool ring_pending(int64_t position, int64_t count, int64_t rows) {
  return position >= 0 && position < rows - count;
}

// The ring row of step index p (0..B-1).
template <typename Int>
PPA_INLINE Int ring_row(Int cursor, Int position, Int rows) {
  const Int row = cursor + position;
  return row < rows ? row : row - rows;
}

// Whether a row holds a live key: its age (0 is the newest) is less than the number of live keys.
PPA_INLINE bool ring_live(int64_t row, int64_t cursor, int64_t count, int64_t rows) {
  const int64_t age = cursor - 1 - row;
  return (age < 0 ? age + rows : age) < count;
}

// The state after a global step that wrote `written` keys. The oldest keys are dropped.
PPA_INLINE RingState ring_commit(RingState state, int64_t written, int64_t size, int64_t rows) {
  const int64_t count = state.count + written;
  return {(state.cursor + written) % rows, count < size ? count : size, state.refused};
}

// Calls f with a value of the type.
template <typename F>
auto with_type(DType type, const F& f) {
  if (type == DType::kBFloat16) return f(bfloat16{});
  if (type == DType::kFloat16) return f(float16{});
  return f(float{});
}

// Whether the ring may hold this element of a key: it is finite, and still so in the ring's type.
template <typename T>
PPA_INLINE bool ring_accepts(float element) {
  return is_finite(to_float(from_float<T>(element)));
}

}  // namespace ppa
