#include "ppa/assemble.h"

#include <atomic>

#include "cpu/multiversion.h"
#include "ppa/operations.h"

namespace ppa::cpu {

namespace {

constexpr int64_t kGrain = 1 << 14;  // TLM tokens: 0.1 ms of work, more than the start of a thread costs

// The faults that the data can have, one bit each. The lowest one is reported, whichever thread finds a fault first.
enum Fault { kAOffsets, kBOffsets, kQueryLayout, kMaskedLayout, kATokens, kBTokens, kFaults };

constexpr const char* kMessages[kFaults] = {
    "a_offsets: expected 0 first, the number of a_tokens last, and no decrease",
    "b_offsets: expected 0 first, the number of b_tokens last, and no decrease",
    "query_cu_seqlens: not the layout of these pairs with this seed and input_shuffling",
    "masked_offsets: not the layout of these pairs with this seed, mask_probability and input_shuffling",
    "a_tokens: found an id outside the vocabulary, expected ids from 0 to below vocab_size",
    "b_tokens: found an id outside the vocabulary, expected ids from 0 to below vocab_size",
};

// Whether the boundaries of part i are valid, for `count` elements in `n` parts.
PPA_INLINE bool bounds_fit(const int32_t* bounds, int64_t i, int64_t n, int64_t count) {
  return bounds[i] >= 0 && bounds[i] <= bounds[i + 1] && bounds[i + 1] <= count && (i > 0 || bounds[i] == 0) &&
         (i + 1 < n || bounds[i + 1] == count);
}

PPA_INLINE void count_up(int32_t* __restrict positions, int64_t n) {
  for (int64_t i = 0; i < n; ++i) positions[i] = static_cast<int32_t>(i);
}

// Copies a row to its sentence and to its TLM sequence; returns whether all ids are in the vocabulary.
PPA_INLINE bool copy_row(const int32_t* __restrict row, int64_t n, uint32_t vocab_size, int32_t* __restrict sentence,
                         int32_t* __restrict tlm) {
  uint32_t outside = 0;
  for (int64_t i = 0; i < n; ++i) {
    outside |= static_cast<uint32_t>(row[i]) >= vocab_size;
    sentence[i] = tlm[i] = row[i];
  }
  return outside == 0;
}

// The index of the next masked position of a pair in the outputs, and the first index of the next pair.
struct MaskedRows {
  int64_t next, end;
};

// Masks the n tokens from `position` on of the TLM sequence that starts at tlm_at. Returns false if the pair has more
// masked positions than the layout allows.
PPA_INLINE bool mask_row(const AssembleArgs& args, int64_t i, int64_t tlm_at, int64_t position, int64_t n,
                         MaskedRows& rows) {
  MaskingLanes lanes;
  for (int64_t done = 0; done < n; done += kMaskingLanes) {
    masking_lanes(args.masking.seed, args.epochs[i], args.pair_ids[i], position + done, lanes);
    const int here = static_cast<int>(n - done < kMaskingLanes ? n - done : kMaskingLanes);
    int chosen[kMaskingLanes], count = 0;
    for (int lane = 0; lane < here; ++lane) {  // no branch, because one token in seven would take it
      chosen[count] = lane;
      count += lanes.w0[lane] < args.masking.select;
    }
    if (rows.next + count > rows.end) return false;
    for (int c = 0; c < count; ++c, ++rows.next) {
      const int lane = chosen[c];
      const int64_t row = tlm_at + position + done + lane;
      const int32_t original = args.tlm_tokens[row];
      args.masked_rows[rows.next] = row;
      args.labels[rows.next] = original;
      args.tlm_tokens[row] = replacement(args.masking, {lanes.w0[lane], lanes.w1[lane], lanes.w2[lane], 0}, original);
    }
  }
  return true;
}

// Assembles pairs [begin, end); returns the faults found. A pair whose output offsets are invalid is skipped.
PPA_MULTIVERSION unsigned assemble_pairs(const AssembleArgs& args, int64_t begin, int64_t end) {
  unsigned faults = 0;
  for (int64_t i = begin; i < end; ++i) {
    const bool a_fits = bounds_fit(args.a_offsets, i, args.n, args.a_count);
    const bool b_fits = bounds_fit(args.b_offsets, i, args.n, args.b_count);
    faults |= !a_fits << kAOffsets | !b_fits << kBOffsets;
    if (!a_fits || !b_fits) continue;
    const AssemblePair pair = assemble_pair(args, i);
    const int64_t query_at = args.query_cu_seqlens[i], key_at = key_start(args, i), tlm_at = tlm_start(args, i);
    if (!bounds_fit(args.query_cu_seqlens, i, args.n, args.query_count) ||
        args.query_cu_seqlens[i + 1] - query_at != pair.query_length + 2 || key_at < 0 ||
        key_at + pair.key_length + 2 > args.key_count()) {
      faults |= 1u << kQueryLayout;
      continue;
    }
    if (!bounds_fit(args.masked_offsets, i, args.n, args.masked_count)) {
      faults |= 1u << kMaskedLayout;
      continue;
    }
    args.swap[i] = pair.swap;
    args.key_cu_seqlens[i + 1] = static_cast<int32_t>(key_start(args, i + 1));
    args.tlm_cu_seqlens[i + 1] = static_cast<int32_t>(tlm_start(args, i + 1));

    const int64_t separator = pair.query_length + 1, last = separator + pair.key_length + 1;
    int32_t *query = args.query_tokens + query_at, *key = args.key_tokens + key_at, *tlm = args.tlm_tokens + tlm_at;
    query[0] = key[0] = tlm[0] = args.cls;
    const bool query_fits = copy_row(pair.query, pair.query_length, args.masking.vocab_size, query + 1, tlm + 1);
    query[separator] = tlm[separator] = args.sep;
    const bool key_fits = copy_row(pair.key, pair.key_length, args.masking.vocab_size, key + 1, tlm + separator + 1);
    key[last - separator] = tlm[last] = args.sep;
    faults |= !query_fits << (pair.swap ? kBTokens : kATokens) | !key_fits << (pair.swap ? kATokens : kBTokens);
    count_up(args.query_positions + query_at, separator + 1);
    count_up(args.key_positions + key_at, last - separator + 1);
    count_up(args.tlm_positions + tlm_at, last + 1);

    MaskedRows rows{args.masked_offsets[i], args.masked_offsets[i + 1]};
    if (args.masking.select == 0) {
      faults |= (rows.next != rows.end) << kMaskedLayout;
      continue;
    }
    const bool fits = mask_row(args, i, tlm_at, 1, pair.query_length, rows) &&
                      mask_row(args, i, tlm_at, separator + 1, pair.key_length, rows) && rows.next == rows.end;
    faults |= !fits << kMaskedLayout;
  }
  return faults;
}

}  // namespace

Status assemble(const Context& context, const AssembleArgs& args) {
  args.key_cu_seqlens[0] = args.tlm_cu_seqlens[0] = 0;
  zero_padding(args);
  std::atomic<unsigned> found = 0;
  // Without pairs the loop below checks nothing, but the first and last boundaries must still be 0.
  if (args.n == 0) {
    found = (args.a_offsets[0] != 0 || args.a_count != 0) << kAOffsets |
            (args.b_offsets[0] != 0 || args.b_count != 0) << kBOffsets |
            (args.query_cu_seqlens[0] != 0 || args.query_count != 0) << kQueryLayout |
            (args.masked_offsets[0] != 0 || args.masked_count != 0) << kMaskedLayout;
  }
  const int64_t grain = ceil_div(kGrain * args.n, args.tlm_count() + 1);
  parallel(context, args.n, grain, [&](int64_t begin, int64_t end) {
    if (const unsigned faults = assemble_pairs(args, begin, end)) found |= faults;
  });
  for (int fault = 0; fault < kFaults; ++fault) {
    if (found >> fault & 1) return kMessages[fault];
  }
  return nullptr;
}

}  // namespace ppa::cpu
