// The queue of keys: a ring of K live rows and B pending ones. Readers take the live rows, writers the pending ones.
#pragma once

#include "ppa/common.h"

namespace ppa {

// Lives on the device, as int64 [3]: the first pending row, the number of live rows (they end before the cursor), and
// how many keys were refused because they are not finite.
struct RingState {
  int64_t cursor, count, refused;
};

// The ring row of position p (0..B-1) of the current global step.
PPA_INLINE int64_t ring_row(int64_t cursor, int64_t position, int64_t rows) {
  const int64_t row = cursor + position;
  return row < rows ? row : row - rows;
}

// Whether a row holds a live key: its age, 0 for the newest, is below their number.
PPA_INLINE bool ring_live(int64_t row, int64_t cursor, int64_t count, int64_t rows) {
  const int64_t age = cursor - 1 - row;
  return (age < 0 ? age + rows : age) < count;
}

// The state after a global step that wrote `written` keys: the oldest make room for them.
PPA_INLINE RingState ring_commit(RingState state, int64_t written, int64_t size, int64_t rows) {
  const int64_t count = state.count + written;
  return {(state.cursor + written) % rows, count < size ? count : size, state.refused};
}

}  // namespace ppa
