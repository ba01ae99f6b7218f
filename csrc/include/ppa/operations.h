// The launchers of every operation: raw pointers and a context in, a status out. ppa::cpu runs on threads of the caller's
// pool, ppa::cuda on a stream; both take the same arguments, whose meaning is told once, here. No torch in these files.
//
// A launcher trusts shapes and pointers (the bindings check them); what only the data can tell (an id, an offset, a
// non-finite key) it guards itself, so that nothing is read or written out of bounds.
#pragma once

#include "ppa/common.h"
#include "ppa/philox.h"

namespace ppa {

// master <- fmaf(momentum, master, (1 - momentum) * source); working <- master, rounded. One pass over flat buffers.
struct EmaArgs {
  float* master;         // [n]
  const float* source;   // [n]
  void* working;         // [n] of working_type, or nullptr
  DType working_type;
  int64_t n;
};

// N pairs of token rows become three streams, one sequence a pair: [CLS] query [SEP], [CLS] key [SEP], and, with masking
// applied, [CLS] query [SEP] key [SEP]; which side is the query, the coin tells. What has to be known before (the sizes,
// and with them where each pair writes) comes from the host. Bad offsets, a layout that does not fit and ids outside the
// vocabulary: the CPU names them, CUDA (which could tell only by waiting) writes within bounds and says nothing.
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

namespace cpu {

// How to run body(begin, end, context) over [0, n) in pieces of at least `grain`, in parallel: at::parallel_for's C form.
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
Status assemble(const Context& context, const AssembleArgs& args);

}  // namespace cpu

namespace cuda {

struct Context {
  void* stream;         // cudaStream_t
  int multiprocessors;  // of the device
};

Status ema(const Context& context, const EmaArgs* tensors, int64_t count, double momentum);
Status assemble(const Context& context, const AssembleArgs& args);

}  // namespace cuda

}  // namespace ppa
