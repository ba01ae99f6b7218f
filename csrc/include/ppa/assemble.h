// What one pair becomes: the same logic for the CPU, for CUDA and for the host packer, which lays the streams out
// beforehand.
#pragma once

#include "ppa/operations.h"
#include "ppa/philox.h"

namespace ppa {

// A pair as its coin put it. A TLM sequence is [CLS] query [SEP] key [SEP]: its position p stands for position p of the
// query's [CLS] query [SEP] up to query_length + 1, and from there for position p - (query_length + 1) of the key's;
// the key's own [CLS] has no place in it.
struct AssemblePair {
  bool swap;
  const int32_t* query;  // [query_length]
  const int32_t* key;    // [key_length]
  int64_t query_length, key_length;
};

PPA_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x < high ? x : high; }

// Where sequence i (0..n) begins. Offsets are clamped, here and below: whatever they hold, a pair's rows lie in
// a_tokens and b_tokens.
PPA_INLINE int64_t tlm_start(const AssembleArgs& args, int64_t i) {
  return clamp(args.a_offsets[i], 0, args.a_count) + clamp(args.b_offsets[i], 0, args.b_count) + 3 * i;
}

PPA_INLINE int64_t key_start(const AssembleArgs& args, int64_t i) {
  return tlm_start(args, i) + i - args.query_cu_seqlens[i];
}

PPA_INLINE AssemblePair assemble_pair(const AssembleArgs& args, int64_t i) {
  const int64_t a_begin = clamp(args.a_offsets[i], 0, args.a_count);
  const int64_t b_begin = clamp(args.b_offsets[i], 0, args.b_count);
  const int64_t a_length = clamp(args.a_offsets[i + 1], a_begin, args.a_count) - a_begin;
  const int64_t b_length = clamp(args.b_offsets[i + 1], b_begin, args.b_count) - b_begin;
  const int32_t *a = args.a_tokens + a_begin, *b = args.b_tokens + b_begin;
  if (args.input_shuffling && coin(args.masking.seed, args.epochs[i], args.pair_ids[i])) {
    return {true, b, a, b_length, a_length};
  }
  return {false, a, b, a_length, b_length};
}

// The words of 16 neighbouring positions of a TLM sequence: a loop that compilers turn into vector instructions.
constexpr int kMaskingLanes = 16;

struct MaskingLanes {
  uint32_t w0[kMaskingLanes], w1[kMaskingLanes], w2[kMaskingLanes];
};

PPA_INLINE void masking_lanes(uint32_t seed, int64_t epoch, int64_t pair_id, int64_t position, MaskingLanes& lanes) {
  for (uint32_t i = 0; i < kMaskingLanes; ++i) {
    const PhiloxWords words = pair_words(seed, epoch, pair_id, kStreamMasking, static_cast<uint32_t>(position) + i);
    lanes.w0[i] = words.w0;
    lanes.w1[i] = words.w1;
    lanes.w2[i] = words.w2;
  }
}

// How many tokens of a pair are selected: what its part of masked_cu_rows counts. The ordinary positions are
// 1 .. query_length + key_length + 1 but for the [SEP] at query_length + 1.
PPA_INLINE int64_t count_selected(uint32_t seed, uint64_t select, int64_t epoch, int64_t pair_id, int64_t query_length,
                                  int64_t key_length) {
  const int64_t separator = query_length + 1, end = query_length + key_length + 2;
  int64_t count = 0;
  MaskingLanes lanes;
  for (int64_t position = 1; position < end; position += kMaskingLanes) {
    masking_lanes(seed, epoch, pair_id, position, lanes);
    int32_t here = 0;
    for (int i = 0; i < kMaskingLanes; ++i) {
      here += (lanes.w0[i] < select) & (position + i < end) & (position + i != separator);
    }
    count += here;
  }
  return count;
}

}  // namespace ppa
