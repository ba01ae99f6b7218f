// The launchers of every operation: raw pointers and a context in, a status out. ppa::cpu runs on threads of the
// caller's pool, ppa::cuda on a stream; both take the same arguments, whose meaning is told once, here. No torch in
// these files.
//
// A launcher trusts shapes and pointers (the bindings check them); what only the data can tell (an id, an offset, a
// non-finite key) it guards itself, so that nothing is read or written out of bounds.
#pragma once

#include "ppa/common.h"
#include "ppa/philox.h"
#include "ppa/ring.h"

namespace ppa {

// master <- fmaf(momentum, master, (1 - momentum) * source); working <- master, rounded. One pass over flat buffers.
struct EmaArgs {
  float* master;        // [n]
  const float* source;  // [n]
  void* working;        // [n] of working_type, or nullptr
  DType working_type;
  int64_t n;
};

// The softmax cross-entropy of `rows` rows of logits, to which a bias is added first: loss <- -log softmax at the
// label, logits <- their gradient, softmax - onehot, rounded, and 0 in the columns from vocab_size on, whose content is
// not read. A label outside [0, vocab_size) (the CPU's binding refuses it): loss NaN, gradient 0.
struct CrossEntropyArgs {
  void* logits;           // [rows, stride] of type; 16-byte aligned, the stride a multiple of 64
  const void* bias;       // [stride] of type, likewise aligned and padded
  const int64_t* labels;  // [rows]
  float* loss;            // [rows]
  DType type;
  int64_t rows, stride, vocab_size;
};

// N pairs of token rows become three streams, one sequence a pair: [CLS] query [SEP], [CLS] key [SEP], and, with
// masking applied, [CLS] query [SEP] key [SEP]; which side is the query, the coin tells. What has to be known before
// (the sizes, and with them where each pair writes) comes from the host. Bad offsets, a layout that does not fit and
// ids outside the vocabulary: the CPU names them, CUDA (which could tell only by waiting) writes within bounds and says
// nothing.
struct AssembleArgs {
  const int32_t* a_tokens;          // [a_count], rows end to end, no special tokens
  const int32_t* a_offsets;         // [n + 1]
  const int32_t* b_tokens;          // [b_count]
  const int32_t* b_offsets;         // [n + 1]
  const int64_t* pair_ids;          // [n]
  const int64_t* epochs;            // [n]
  const int32_t* query_cu_seqlens;  // [n + 1], boundaries of the query stream
  const int32_t* masked_cu_rows;    // [n + 1], running count of the masked rows
  int64_t n, a_count, b_count, query_count, masked_count;
  Masking masking;
  int32_t cls, sep;
  bool input_shuffling;  // false: side a is the query of every pair

  int32_t *query_tokens, *query_positions;  // [query_count]
  int32_t *key_tokens, *key_positions;      // [a_count + b_count + 4 n - query_count]
  int32_t* key_cu_seqlens;                  // [n + 1]
  int32_t *tlm_tokens, *tlm_positions;      // [a_count + b_count + 3 n]
  int32_t* tlm_cu_seqlens;                  // [n + 1]
  int64_t *masked_rows, *labels;            // [masked_count]: ascending rows of the TLM stream, their original ids
  bool* swap;                               // [n]

  PPA_INLINE int64_t key_count() const { return a_count + b_count + 4 * n - query_count; }
  PPA_INLINE int64_t tlm_count() const { return a_count + b_count + 3 * n; }
};

// The queue of keys (ppa/ring.h).
struct Ring {
  void* keys;        // [rows, dim] of type
  int64_t* groups;   // [rows]
  RingState* state;  // on the device
  DType type;
  int64_t rows, dim;
};

// ring row of positions[i] <- keys[i], rounded, with its group. Refused and counted: a key that is not finite (or too
// large for the ring's type), a position without a pending row.
struct EnqueueArgs {
  Ring ring;
  const void* keys;  // [n, dim] of keys_type: float, or the ring's type
  DType keys_type;
  const int64_t* groups;     // [n]
  const int64_t* positions;  // [n]
  int64_t n;
};

// InfoNCE of n queries against the live rows of the ring that are not of their group. The ring is taken in parts, each
// of which leaves a state (ppa/infonce.h); `finish` joins them in order with the positive, and, given positions,
// enqueues the positives.
struct InfoNceArgs {
  Ring ring;
  const void *query, *positive;  // [n, dim] of the ring's type
  const int64_t* groups;         // [n]
  const int64_t* positions;      // [n], or nullptr
  int64_t n;
  float scale, inverse_temperature;  // log2(e) / temperature, 1 / temperature
  int64_t parts;
  float *max, *sum, *weighted;  // the states: [parts, n] twice, [parts, n, dim]

  float* loss;  // [n]
  bool* top1;   // [n]
  float* dq;    // [n, dim]: the loss's gradient
};

// How a backend goes through the ring. columns = 0: at once, infonce_parts fills the states of all parts. Otherwise in
// chunks of at most `columns` rows (a multiple of 64): a matrix product gives a chunk's dot products, infonce_chunk
// turns them into weights, a second one sums the weighted rows into the state of part 1 of 2. Neither needs memory that
// grows with the ring.
struct InfoNcePlan {
  int64_t parts, columns;
  DType weights_type;  // of the chunks: float, in place of the dot products, or the ring's type
};

// Rows first_row .. first_row + rows - 1 of the ring. Part 1, the chunk before this one, joins part 0, and becomes this
// chunk; `first`: there was none before.
struct InfoNceChunk {
  float* dots;    // [n, stride]
  void* weights;  // [n, stride] of the plan's weights_type
  int64_t stride, first_row, rows;
  bool first;
};

namespace cpu {

// How to run body(begin, end, context) over [0, n) in pieces of at least `grain`, in parallel: at::parallel_for's C
// form.
struct Context {
  void (*parallel_for)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);
};

// parallel_for for a callable.
template <typename F>
void parallel(const Context& context, int64_t n, int64_t grain, const F& f) {
  context.parallel_for(
      0, n, grain, [](int64_t begin, int64_t end, void* f) { (*static_cast<const F*>(f))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

Status ema(const Context& context, const EmaArgs* tensors, int64_t count, double momentum);
Status cross_entropy(const Context& context, const CrossEntropyArgs& args);
Status assemble(const Context& context, const AssembleArgs& args);

Status enqueue(const Context& context, const EnqueueArgs& args);
Status commit(const Context& context, RingState* state, int64_t written, int64_t size, int64_t rows);

InfoNcePlan infonce_plan(const Context& context, DType type, int64_t n, int64_t dim, int64_t rows);
Status infonce_chunk(const Context& context, const InfoNceArgs& args, const InfoNceChunk& chunk);
Status infonce_finish(const Context& context, const InfoNceArgs& args);

}  // namespace cpu

namespace cuda {

struct Context {
  void* stream;         // cudaStream_t
  int multiprocessors;  // of the device
  int shared_bytes;     // that one block may have
};

Status ema(const Context& context, const EmaArgs* tensors, int64_t count, double momentum);
Status cross_entropy(const Context& context, const CrossEntropyArgs& args);
Status assemble(const Context& context, const AssembleArgs& args);

Status enqueue(const Context& context, const EnqueueArgs& args);
Status commit(const Context& context, RingState* state, int64_t written, int64_t size, int64_t rows);

InfoNcePlan infonce_plan(const Context& context, DType type, int64_t n, int64_t dim, int64_t rows);
Status infonce_parts(const Context& context, const InfoNceArgs& args);
Status infonce_chunk(const Context& context, const InfoNceArgs& args, const InfoNceChunk& chunk);
Status infonce_finish(const Context& context, const InfoNceArgs& args);

}  // namespace cuda

}  // namespace ppa
