// Vector loads and stores: two 16-bit elements in a register, four elements in one memory access.
#pragma once

#include <type_traits>

#include "cuda/device.cuh"

namespace ppa::cuda {

// Two floats, rounded, in one register; `low` is at the lower address.
template <typename T>
PPA_INLINE uint32_t pack2(float low, float high) {
#ifdef __CUDA_ARCH__
  uint32_t bits;  // one instruction for both
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  }
  return bits;
#else
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
#endif
}

struct alignas(8) Bits4 {
  uint16_t bits[4];
};

PPA_INLINE void store4(float* to, float4 x) { *reinterpret_cast<float4*>(to) = x; }

template <typename T>
PPA_INLINE void store4(T* to, float4 x) {
  *reinterpret_cast<Bits4*>(to) = {from_float<T>(x.x).bits, from_float<T>(x.y).bits, from_float<T>(x.z).bits,
                                   from_float<T>(x.w).bits};
}

PPA_INLINE float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }

template <typename T>
PPA_INLINE float4 load4(const T* from) {
  const Bits4 x = *reinterpret_cast<const Bits4*>(from);
  return make_float4(to_float(T{x.bits[0]}), to_float(T{x.bits[1]}), to_float(T{x.bits[2]}), to_float(T{x.bits[3]}));
}

PPA_INLINE float4 scale4(float a, float4 x) { return make_float4(a * x.x, a * x.y, a * x.z, a * x.w); }

PPA_INLINE float4 fma4(float a, float4 x, float4 y) {
  return make_float4(fmaf(a, x.x, y.x), fmaf(a, x.y, y.y), fmaf(a, x.z, y.z), fmaf(a, x.w, y.w));
}

}  // namespace ppa::cuda
