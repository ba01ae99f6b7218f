// The exponential of a float: no branches on the host, so that g++ vectorises a loop over it (15 operations of AVX2 or
// AVX-512), and one instruction of the special-function unit on a GPU.
#pragma once

#include <cmath>

#include "ppa/common.h"

namespace ppa {

// 2^x for x up to 128, to 8e-8 relative (2 ulp on a GPU): 0 below 2^-126.5, infinity from 2^127.5 on, NaN for NaN.
//
// On the host x is split into the nearest integer n, whose bits make 2^n, and a rest in [-1/2, 1/2], whose power is the
// polynomial of degree 6 of the smallest relative error (2e-9). The limit below and NaN are found by the order of
// floats' bits: in that of floats g++ would make branches of them, and leave the loop as it is for AVX2.
PPA_INLINE float exp2_poly(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  constexpr uint32_t kLowest = 0xc2fe0000u;         // -127, and the least of all negative floats below it
  constexpr uint32_t kMinusInfinity = 0xff800000u;  // negative NaNs come after it; positive ones stay NaN by themselves
  constexpr float kRound = 0x1.8p23f + 127;         // added: rounds to an integer, leaves n + 127 in the lowest bits
  const uint32_t bits = float_bits(x);
  const float clamped = bits_float(bits < kLowest ? bits : kLowest);
  const float shifted = clamped + kRound;
  const float f = clamped - (shifted - kRound);
  float p = 0x1.41fbbcp-13f;
  p = fmaf(p, f, 0x1.5f3e52p-10f);
  p = fmaf(p, f, 0x1.3b2d4cp-7f);
  p = fmaf(p, f, 0x1.c6aee8p-5f);
  p = fmaf(p, f, 0x1.ebfbdcp-3f);
  p = fmaf(p, f, 0x1.62e430p-1f);
  p = fmaf(p, f, 1.0f);
  const float power = p * bits_float(float_bits(shifted) << 23);
  return bits_float(float_bits(power) | -static_cast<uint32_t>(bits > kMinusInfinity));
#endif
}

}  // namespace ppa
