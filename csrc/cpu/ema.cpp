#include "ppa/ema.h"

#include "cpu/multiversion.h"
#include "ppa/operations.h"

namespace ppa::cpu {

namespace {

constexpr int64_t kGrain = 1 << 15;  // elements: 0.4 MB, a thread's share is worth its start

// Blocks that stay in the first-level cache: the master is read back for the working copy without a trip to memory.
constexpr int64_t kBlock = 1024;

PPA_MULTIVERSION void update(float* master, const float* source, int64_t n, float momentum, float rest) {
  for (int64_t i = 0; i < n; ++i) master[i] = ema_step(master[i], source[i], momentum, rest);
}

PPA_MULTIVERSION void round_bfloat16(const float* master, bfloat16* working, int64_t n) {
  for (int64_t i = 0; i < n; ++i) working[i] = from_float<bfloat16>(master[i]);
}

PPA_MULTIVERSION void round_float16(const float* master, float16* working, int64_t n) {
  for (int64_t i = 0; i < n; ++i) working[i] = from_float<float16>(master[i]);
}

void round_to(const EmaArgs& tensor, int64_t at, int64_t n) {
  if (tensor.working == nullptr) return;
  const float* master = tensor.master + at;
  switch (tensor.working_type) {
    case DType::kFloat32:
      memcpy(static_cast<float*>(tensor.working) + at, master, sizeof(float) * n);
      break;
    case DType::kBFloat16:
      round_bfloat16(master, static_cast<bfloat16*>(tensor.working) + at, n);
      break;
    case DType::kFloat16:
      round_float16(master, static_cast<float16*>(tensor.working) + at, n);
      break;
  }
}

}  // namespace

Status ema(const Context& context, const EmaArgs* tensors, int64_t count, double momentum) {
  const float m = static_cast<float>(momentum), rest = static_cast<float>(1.0 - momentum);
  for (int64_t t = 0; t < count; ++t) {
    const EmaArgs& tensor = tensors[t];
    parallel(context, tensor.n, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; at += kBlock) {
        const int64_t n = end - at < kBlock ? end - at : kBlock;
        update(tensor.master + at, tensor.source + at, n, m, rest);
        round_to(tensor, at, n);
      }
    });
  }
  return nullptr;
}

}  // namespace ppa::cpu
