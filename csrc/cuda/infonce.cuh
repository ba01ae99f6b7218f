// The tiles of infonce_parts_kernel, and the limits of both ways to process the ring on a GPU.
#pragma once

#include <cstddef>

#include "ppa/common.h"

namespace ppa::cuda {

constexpr int kMaxInfoNceParts = 512;

// A tile of infonce_parts_kernel. Shared memory holds the queries of the block and `stages` tiles of keys: the kernel
// multiplies one tile while the others are being loaded. Each row has its group.
struct InfoNceTile {
  int dim;            // columns; rows are padded with zeros
  int queries, keys;  // rows
  int stages;

  constexpr size_t shared_bytes() const {
    return static_cast<size_t>(queries + stages * keys) * (static_cast<size_t>(dim) * 2 + sizeof(int64_t));
  }
};

// Blocks per multiprocessor: as many as the registers allow for 128 queries of 128 columns.
constexpr int kInfoNceBlocks = 2;

// Sorted by columns, then by queries.
//
// queries: with 128 queries each warp has two tiles of 16 rows, and uses each fragment of the ring that it reads from
// shared memory twice. With 64 queries the bandwidth of shared memory (128 bytes per clock) limits the products to
// 2,048 flop per clock and multiprocessor; mma.sync reaches some 2,500 on an H200. The sums of 128 queries by 256
// columns do not fit into the registers.
// keys: 64 keys by 64 queries, and 32 keys by 128 queries, take 32 registers of dot products per thread.
// stages: an H200 needs 33 KB in flight on each multiprocessor (4.3 TB/s for 1 us). There are four stages, or five
// where four keep less than 33 KB in flight, and fewer if two blocks, with the 1 KB that the system reserves for each,
// would not fit into the 164 KB of sm_80. With 64 queries of 128 columns four stages would need 167 KB. With 256
// columns two stages fit twice into sm_90 and sm_100 (228 KB), and once into sm_80.
//
// Registers per thread: tests/csrc/resources.tsv.
constexpr InfoNceTile kInfoNceTiles[] = {
    // columns, queries, keys, stages; shared memory per block, KB in flight per multiprocessor
    {64, 64, 64, 4},    //  43 KB, 51
    {64, 128, 32, 5},   //  38 KB, 34
    {128, 64, 64, 3},   //  66 KB, 66
    {128, 128, 32, 4},  //  66 KB, 50
    {256, 64, 64, 2},   //  98 KB, 65
};
static_assert([] {
  for (const InfoNceTile& tile : kInfoNceTiles) {
    const size_t multiprocessor = tile.dim <= 128 ? 164 * 1024 : 228 * 1024;
    if (kInfoNceBlocks * (tile.shared_bytes() + 1024) > multiprocessor || tile.shared_bytes() > 163 * 1024)
      return false;
  }
  return true;
}());

constexpr int kInfoNceTileCount = sizeof(kInfoNceTiles) / sizeof(kInfoNceTiles[0]);
constexpr int64_t kMaxInfoNceTileDim = kInfoNceTiles[kInfoNceTileCount - 1].dim;

// Returns the index of the tile for n queries: the first that holds them, else the one with the most queries. Returns
// -1 if no tile has enough columns.
constexpr int infonce_tile(int64_t n, int64_t dim) {
  for (int i = 0; i < kInfoNceTileCount; ++i) {
    const bool last = i + 1 == kInfoNceTileCount || kInfoNceTiles[i + 1].dim != kInfoNceTiles[i].dim;
    if (dim <= kInfoNceTiles[i].dim && (n <= kInfoNceTiles[i].queries || last)) return i;
  }
  return -1;
}

// A block of infonce_weigh_kernel keeps a row of a chunk's dot products in registers, `kWeighVectors` elements per
// thread. 34,816 columns are half of a ring of 65,536 live and up to 4,096 pending keys.
constexpr int kWeighThreads = 512;
constexpr int kWeighVectors = 68;
constexpr int64_t kMaxChunkColumns = kWeighThreads * kWeighVectors;
constexpr int64_t kMinChunkColumns = 256;

// Dot products per chunk: 36 MB. The weights overwrite them, so that a chunk fits into the L2 cache of an H200 (50 MB).
constexpr int64_t kMaxChunk = 256 * kMaxChunkColumns;

}  // namespace ppa::cuda
