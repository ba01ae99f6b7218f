// Definitions that every file of csrc uses: the function qualifier, the number types and the launcher status.
#pragma once

#include <cstdint>
#include <cstring>

// PPA_INLINE code is compiled for the CPU, for CUDA and for the SIMT harness.
#ifdef __CUDACC__
#define PPA_INLINE __host__ __device__ __forceinline__
#else
#define PPA_INLINE inline
#endif

namespace ppa {

// A launcher returns nullptr on success, or an error message.
using Status = const char*;

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16 };

PPA_INLINE uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

PPA_INLINE float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Storage types; arithmetic is in float. They hold bits only, so that g++ and nvcc compile the same source.
struct alignas(2) bfloat16 {
  uint16_t bits;
};
struct alignas(2) float16 {
  uint16_t bits;
};

PPA_INLINE float to_float(float x) { return x; }
PPA_INLINE float to_float(bfloat16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }

PPA_INLINE float to_float(float16 x) {
#ifdef __CUDA_ARCH__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  // Adds 112 to the exponent. The scaling is a float multiplication, which also handles subnormal numbers.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  return bits_float(sign | float_bits(bits_float(magnitude << 13) * 0x1p112f));
#endif
}

template <typename T>
PPA_INLINE T from_float(float x);

template <>
PPA_INLINE float from_float<float>(float x) {
  return x;
}

// Rounds to nearest, ties to even; a NaN stays a NaN.
template <>
PPA_INLINE bfloat16 from_float<bfloat16>(float x) {
  const uint32_t bits = float_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
PPA_INLINE float16 from_float<float16>(float x) {
#ifdef __CUDA_ARCH__
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return {bits};
#else
  const uint32_t bits = float_bits(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {  // below 2^-14: the addition of 0.5 rounds at 2^-24
    const float rounded = bits_float(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (float_bits(rounded) - 0x3f000000u))};
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13))};
#endif
}

PPA_INLINE bool is_finite(float x) { return (float_bits(x) & 0x7f800000u) != 0x7f800000u; }

PPA_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace ppa
