// Assembles token rows into packed sequences: one warp per pair, one launch. No warp waits for another pair, because
// the host has computed the layout. A micro-batch of 1,024 pairs is one wave of blocks. Its time is the launch, two
// round trips to memory (offsets, tokens), and a few more for every further 32 positions of the longest pair.

#include "ppa/assemble.h"

#include "cuda/device.cuh"
#include "ppa/operations.h"

namespace ppa::cuda {

constexpr int kAssembleWarps = 4;  // per block: 1,024 pairs make 257 blocks, two per multiprocessor of an H200

// Stores a value if its index is within bounds; the offsets and the layout on the device may be invalid.
template <typename T>
PPA_INLINE void put(T* out, int64_t count, int64_t at, T value) {
  if (static_cast<uint64_t>(at) < static_cast<uint64_t>(count)) out[at] = value;
}

// Loads everything before it stores anything, so that the round trips to memory overlap.
__device__ __forceinline__ void write_pair(const AssembleArgs& args, int64_t i, int lane) {
  const int64_t query_at = args.query_cu_seqlens[i], key_at = key_start(args, i), tlm_at = tlm_start(args, i);
  const int64_t pair_id = args.pair_ids[i], epoch = args.epochs[i];
  int64_t masked_at = args.masked_offsets[i];
  const AssemblePair pair = assemble_pair(args, i);
  const int64_t separator = pair.query_length + 1, last = separator + pair.key_length + 1;
  if (lane == 0) {
    args.swap[i] = pair.swap;
    put(args.key_tokens, args.key_count(), key_at, args.cls);
    put(args.key_positions, args.key_count(), key_at, 0);
  }
  for (int64_t strip = 0; strip <= last; strip += 32) {  // the same count for all lanes, which __ballot_sync needs
    const int64_t position = strip + lane;
    const bool inside = position <= last,
               ordinary = inside && position != 0 && position != separator && position != last;
    int32_t original = position == 0 ? args.cls : args.sep, token = original;
    bool chosen = false;
    if (ordinary) {
      token = original = position < separator ? pair.query[position - 1] : pair.key[position - separator - 1];
      const PhiloxWords words =
          pair_words(args.masking.seed, epoch, pair_id, kStreamMasking, static_cast<uint32_t>(position));
      chosen = selected(args.masking, words);
      if (chosen) token = replacement(args.masking, words, original);
    }
    if (inside) {
      if (position <= separator) {
        put(args.query_tokens, args.query_count, query_at + position, original);
        put(args.query_positions, args.query_count, query_at + position, static_cast<int32_t>(position));
      } else {
        const int64_t in_key = position - separator;
        put(args.key_tokens, args.key_count(), key_at + in_key, original);
        put(args.key_positions, args.key_count(), key_at + in_key, static_cast<int32_t>(in_key));
      }
      put(args.tlm_tokens, args.tlm_count(), tlm_at + position, token);
      put(args.tlm_positions, args.tlm_count(), tlm_at + position, static_cast<int32_t>(position));
    }
    const unsigned all = __ballot_sync(0xffffffffu, chosen);
    if (chosen) {
      const int64_t row = masked_at + __popc(all & ((1u << lane) - 1));
      put(args.masked_rows, args.masked_count, row, tlm_at + position);
      put(args.labels, args.masked_count, row, static_cast<int64_t>(original));
    }
    masked_at += __popc(all);
  }
}

__global__ void __launch_bounds__(kAssembleWarps * 32) assemble_kernel(const __grid_constant__ AssembleArgs args) {
  const int lane = threadIdx.x % 32;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kAssembleWarps + threadIdx.x / 32;
  if (i < args.n) write_pair(args, i, lane);
  if (i <= args.n && lane == 0) {  // i == n: the last boundary
    args.key_cu_seqlens[i] = static_cast<int32_t>(key_start(args, i));
    args.tlm_cu_seqlens[i] = static_cast<int32_t>(tlm_start(args, i));
  }
  if (i == args.n && lane == 1) zero_padding(args);
}

Status assemble(const Context& context, const AssembleArgs& args) {
  const int64_t blocks = ceil_div(args.n + 1, kAssembleWarps);
  return launch(assemble_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kAssembleWarps * 32), 0, context.stream,
                args);
}

}  // namespace ppa::cuda
