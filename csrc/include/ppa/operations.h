// The launchers of all operations. Each takes raw pointers and a context, and returns a status. ppa::cpu runs on the
// threads of the caller's pool, ppa::cuda on a stream. Both take the same arguments, which are documented here only.
// These files do not include torch.
//
// The bindings check shapes and pointers. The launchers check values that only the data shows (an id, an offset, a
// non-finite key), so that nothing is read or written out of bounds.
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

// The softmax cross-entropy of `rows` rows of logits, after a bias is added: loss <- -log softmax at the label; logits
// <- their gradient, softmax - onehot, rounded. The columns from vocab_size on are padding: they are not read, and are
// set to 0. If a label is outside [0, vocab_size), the loss is NaN and the gradient 0 (the CPU binding raises an error
// before).
struct CrossEntropyArgs {
  void* logits;           // [rows, stride] of type; 16-byte aligned, stride a multiple of 64
  const void* bias;       // [stride] of type, aligned and padded as logits are
  const int64_t* labels;  // [rows]
  float* loss;            // [rows]
  DType type;
  int64_t rows, stride, vocab_size;
};

// Every output of `assemble` starts at a multiple of this many bytes. The padding after an output is set to 0.
constexpr int kAssembleAlignment = 16;

// Assembles N pairs of token rows into three packed outputs with one sequence per pair: [CLS] query [SEP], [CLS] key
// [SEP], and the masked [CLS] query [SEP] key [SEP]. A coin chooses which side is the query. The host passes the sizes
// and the offset of each pair, which it has computed before. For invalid offsets, a layout that does not match, or ids
// outside the vocabulary, the CPU backend returns an error. The CUDA backend would have to synchronize to report it; it
// only keeps its writes within bounds.
struct AssembleArgs {
  const int32_t* a_tokens;          // [a_count], concatenated rows without special tokens
  const int32_t* a_offsets;         // [n + 1]
  const int32_t* b_tokens;          // [b_count]
  const int32_t* b_offsets;         // [n + 1]
  const int64_t* pair_ids;          // [n]
  const int64_t* epochs;            // [n]
  const int32_t* query_cu_seqlens;  // [n + 1], boundaries of the query sequences
  const int32_t* masked_offsets;    // [n + 1], cumulative number of masked positions
  int64_t n, a_count, b_count, query_count, masked_count;
  Masking masking;
  int32_t cls, sep;
  bool input_shuffling;  // false: side a is the query of every pair

  int32_t *query_tokens, *query_positions;  // [query_count]
  int32_t *key_tokens, *key_positions;      // [a_count + b_count + 4 n - query_count]
  int32_t* key_cu_seqlens;                  // [n + 1]
  int32_t *tlm_tokens, *tlm_positions;      // [a_count + b_count + 3 n]
  int32_t* tlm_cu_seqlens;                  // [n + 1]
  int64_t *masked_rows, *labels;            // [masked_count]: masked_positions, sorted indices into tlm_tokens, and
                                            // their original ids
  bool* swap;                               // [n]: is_swapped

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

// Writes keys[i], rounded, with its group to the ring row of step_indices[i]. Keys that are not finite (or overflow the
// type of the ring) and indices without a pending row are refused and counted.
struct EnqueueArgs {
  Ring ring;
  const void* keys;  // [n, dim] of keys_type: float, or the ring's type
  DType keys_type;
  const int64_t* groups;        // [n]
  const int64_t* step_indices;  // [n]
  int64_t n;
};

// InfoNCE of n queries against the live rows of the ring that belong to other groups. The ring is processed in parts,
// each with its own state (ppa/infonce.h). `finish` merges the states in order, adds the positive, and, if step_indices
// are given, enqueues the positives.
struct InfoNceArgs {
  Ring ring;
  const void *query, *positive;  // [n, dim] of the ring's type
  const int64_t* groups;         // [n]
  const int64_t* step_indices;   // [n], or nullptr
  int64_t n;
  float scale, inverse_temperature;  // log2(e) / temperature, 1 / temperature
  int64_t parts;
  float *max, *sum, *weighted;  // the states: [parts, n], [parts, n], [parts, n, dim]

  float* loss;  // [n]
  bool* top1;   // [n]
  float* dq;    // [n, dim]: the gradient of the loss
};

// How a backend processes the ring. If columns is 0, infonce_parts computes the states of all parts in one kernel.
// Otherwise the ring is processed in chunks of at most `columns` rows (a multiple of 64). A matrix product computes the
// dot products of a chunk, infonce_chunk turns them into weights, and a second matrix product computes the weighted sum
// of the rows for the state of part 1 of 2. Neither way needs memory that grows with the ring.
struct InfoNcePlan {
  int64_t parts, columns;
  DType weights_type;  // of the chunks
};

// The ring rows first_row .. first_row + rows - 1. infonce_chunk merges the previous chunk (part 1) into part 0, and
// stores this chunk in part 1. `first`: there is no previous chunk.
struct InfoNceChunk {
  float* dots;  // [n, stride]; overwritten by the weights, of type weights_type, from the start of each row
  int64_t stride, first_row, rows;
  bool first;
};

namespace cpu {

// Runs body(begin, end, context) over [0, n) in parallel, in pieces of at least `grain`: the C form of
// at::parallel_for.
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
  int shared_bytes;     // available to one block
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
