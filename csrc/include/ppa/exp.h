// The exponential of a float. The host version has no branches, so that g++ vectorizes loops over it (15 operations of
// AVX2 or AVX-512). On a GPU it is one instruction of the special-function unit.
#pragma once

#include <cmath>

#include "ppa/common.h"

namespace ppa {

// 2^x for x up to 128, with a relative error of 8e-8 (2 ulp on a GPU): 0 below 2^-126.5, infinity from 2^127.5 on, NaN
// for NaN.
//
// The host version splits x into the nearest integer n, whose bits give 2^n, and a remainder in [-1/2, 1/2]. The power
// of the remainder is the polynomial of degree 6 with the smallest relative error (2e-9). The lower limit and NaN are
// detected by comparing the bits of the floats as integers, because g++ compiles float comparisons to branches and then
// does not vectorize the loop for AVX2.
PPA_INLINE float exp2_poly(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  constexpr uint32_t kLowest = 0xc2fe0000u;         // -127; every negative float below it has larger bits
  constexpr uint32_t kMinusInfinity = 0xff800000u;  // the bits of negative NaNs are above; positive NaNs need no check
  constexpr float kRound = 0x1.8p23f + 127;         // adding it rounds to an integer; the lowest bits are n + 127
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
