#include "ppa/ema.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "cpu/multiversion.h"
#include "ppa/operations.h"

namespace ppa::cpu {

namespace {

constexpr int64_t kGrain = 1 << 15;  // elements: 0.4 MB of work, more than the start of a thread costs

constexpr int64_t kBlock = 64;  // elements of a working copy that are written together: two or four cache lines

// Non-temporal stores, which bypass the caches: the working copy is not read again here. An ordinary store would fetch
// each cache line first, which costs as much as writing it (16 bytes per parameter instead of 14 for a 16-bit copy).
template <typename T>
[[gnu::always_inline]] inline void stream(T* to, const T (&from)[kBlock]) {
#ifdef __SSE2__
  const __m128i* in = reinterpret_cast<const __m128i*>(from);
  for (size_t i = 0; i < sizeof from / 16; ++i) _mm_stream_si128(reinterpret_cast<__m128i*>(to) + i, in[i]);
#else
  memcpy(to, from, sizeof from);
#endif
}

template <typename T>
[[gnu::always_inline]] inline void update(float* __restrict master, const float* __restrict source,
                                          T* __restrict working, int64_t n, float momentum, float rest) {
  const auto step = [=](int64_t i) { return master[i] = ema_step(master[i], source[i], momentum, rest); };
  const int64_t unaligned = (-reinterpret_cast<intptr_t>(working) & 63) / sizeof(T);  // before the first cache line
  int64_t i = 0;
  for (; i < n && i < unaligned; ++i) working[i] = from_float<T>(step(i));
  for (; i + kBlock <= n; i += kBlock) {
    alignas(64) T rounded[kBlock];
    for (int64_t j = 0; j < kBlock; ++j) rounded[j] = from_float<T>(step(i + j));
    stream(working + i, rounded);
  }
  for (; i < n; ++i) working[i] = from_float<T>(step(i));
#ifdef __SSE2__
  _mm_sfence();  // without the fence, other threads may read the old values
#endif
}

// Reads a complete block before it writes it: 12 % faster on a Zen 4 than element by element.
PPA_MULTIVERSION void update_alone(float* __restrict master, const float* __restrict source, int64_t n, float momentum,
                                   float rest) {
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    alignas(64) float updated[kBlock];
    for (int64_t j = 0; j < kBlock; ++j) updated[j] = ema_step(master[i + j], source[i + j], momentum, rest);
    memcpy(master + i, updated, sizeof updated);
  }
  for (; i < n; ++i) master[i] = ema_step(master[i], source[i], momentum, rest);
}

PPA_MULTIVERSION void update_float32(float* master, const float* source, float* working, int64_t n, float momentum,
                                     float rest) {
  update(master, source, working, n, momentum, rest);
}

PPA_MULTIVERSION void update_bfloat16(float* master, const float* source, bfloat16* working, int64_t n, float momentum,
                                      float rest) {
  update(master, source, working, n, momentum, rest);
}

PPA_MULTIVERSION void update_float16(float* master, const float* source, float16* working, int64_t n, float momentum,
                                     float rest) {
  update(master, source, working, n, momentum, rest);
}

void update(const EmaArgs& tensor, int64_t begin, int64_t end, float momentum, float rest) {
  float* master = tensor.master + begin;
  const float* source = tensor.source + begin;
  const int64_t n = end - begin;
  if (tensor.working == nullptr) return update_alone(master, source, n, momentum, rest);
  switch (tensor.working_type) {
    case DType::kFloat32:
      return update_float32(master, source, static_cast<float*>(tensor.working) + begin, n, momentum, rest);
    case DType::kBFloat16:
      return update_bfloat16(master, source, static_cast<bfloat16*>(tensor.working) + begin, n, momentum, rest);
    case DType::kFloat16:
      return update_float16(master, source, static_cast<float16*>(tensor.working) + begin, n, momentum, rest);
  }
}

}  // namespace

Status ema(const Context& context, const EmaArgs* tensors, int64_t count, double momentum) {
  const float m = static_cast<float>(momentum), rest = static_cast<float>(1.0 - momentum);
  for (int64_t t = 0; t < count; ++t) {
    parallel(context, tensors[t].n, kGrain,
             [&](int64_t begin, int64_t end) { update(tensors[t], begin, end, m, rest); });
  }
  return nullptr;
}

}  // namespace ppa::cpu
