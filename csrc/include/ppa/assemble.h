// The sequences of one pair. The CPU backend, the CUDA backend and the host packer share this logic. The packer uses it
// to compute the layout.
#pragma once

#include "ppa/operations.h"
#include "ppa/philox.h"

namespace ppa {

// The query and the key of a pair, after the coin has chosen them. The TLM sequence is [CLS] query [SEP] key [SEP]. Its
// positions 0 to query_length + 1 are the positions of [CLS] query [SEP]. Its later positions p are the positions p -
// (query_length + 1) of [CLS] key [SEP]. The TLM sequence does not contain the [CLS] of the key.
struct AssemblePair {
  bool swap;
  const int32_t* query;  // [query_length]
  const int32_t* key;    // [key_length]
  int64_t query_length, key_length;
};

PPA_INLINE int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x < high ? x : high; }

// The start of TLM sequence i (0..n). All functions of this file clamp the offsets, so that the rows of a pair always
// lie in a_tokens and b_tokens, even if the offsets are invalid.
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

template <typename T>
PPA_INLINE void zero_padding_after(T* end) {
  for (auto* byte = reinterpret_cast<unsigned char*>(end); reinterpret_cast<uintptr_t>(byte) % kAssembleAlignment != 0;
       ++byte) {
    *byte = 0;
  }
}

// Writes 0 to the padding between the outputs, so that every byte of the buffer depends on the arguments only.
PPA_INLINE void zero_padding(const AssembleArgs& args) {
  zero_padding_after(args.query_tokens + args.query_count);
  zero_padding_after(args.query_positions + args.query_count);
  zero_padding_after(args.key_tokens + args.key_count());
  zero_padding_after(args.key_positions + args.key_count());
  zero_padding_after(args.key_cu_seqlens + args.n + 1);
  zero_padding_after(args.tlm_tokens + args.tlm_count());
  zero_padding_after(args.tlm_positions + args.tlm_count());
  zero_padding_after(args.tlm_cu_seqlens + args.n + 1);
  zero_padding_after(args.masked_rows + args.masked_count);
  zero_padding_after(args.labels + args.masked_count);
  zero_padding_after(args.swap + args.n);
}

// The Philox words of 16 consecutive positions of a TLM sequence. Compilers vectorize a loop over them.
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

// The number of selected tokens of a pair, which masked_offsets accumulates. The ordinary positions are 1 ..
// query_length + key_length + 1, except the [SEP] at query_length + 1.
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
