// Chooses how InfoNCE processes the ring.

#include "cuda/device.cuh"
#include "cuda/infonce.cuh"
#include "ppa/operations.h"

namespace ppa::cuda {

constexpr int64_t kMaxFusedRows = 1 << 30;  // infonce_parts_kernel counts rows in 32 bits

InfoNcePlan infonce_plan(const Context& context, DType type, int64_t n, int64_t dim, int64_t rows) {
  if (type != DType::kFloat32 && dim <= kMaxInfoNceTileDim && rows <= kMaxFusedRows) {
    // One wave of blocks. The states of 128 queries of 128 columns take 64 KB, 17 MB in total on an H200, and stay in
    // its L2 cache until infonce_finish_kernel reads them.
    const InfoNceTile& tile = kInfoNceTiles[infonce_tile(n, dim)];
    const int64_t blocks = static_cast<int64_t>(context.multiprocessors) * kInfoNceBlocks;
    const int64_t parts = min(blocks / ceil_div(n, int64_t{tile.queries}), ceil_div(rows, int64_t{tile.keys}));
    return {max(int64_t{1}, min(parts, int64_t{kMaxInfoNceParts})), 0, type};
  }
  const int64_t most = max(kMinChunkColumns, min(kMaxChunk / n, kMaxChunkColumns) / 64 * 64);
  return {2, ceil_div(ceil_div(rows, ceil_div(rows, most)), int64_t{64}) * 64, type};
}

}  // namespace ppa::cuda
