// The softmax cross-entropy of a row of logits, in powers of two: e^z is taken as 2^(z kLog2e).
#pragma once

#include "ppa/exp.h"

namespace ppa {

constexpr float kLog2e = 0x1.715476p0f;

// The sum of 2^(z kLog2e) over some logits z of a row, as sum * 2^shift; 2^shift is the largest term.
struct RowSum {
  float shift, sum;

  // Of no logits. Finite: -inf would meet a logit of -inf as NaN.
  static PPA_INLINE RowSum empty() { return {-0x1.fffffep127f, 0.0f}; }

  // The shift once logits up to `largest` have joined.
  PPA_INLINE float shift_with(float largest) const {
    const float candidate = largest * kLog2e;
    return candidate > shift ? candidate : shift;
  }

  // The sum as it counts under another shift, of this one's size at least.
  PPA_INLINE float under(float other) const { return sum * exp2_poly(shift - other); }

  PPA_INLINE RowSum merged(RowSum other) const {
    const float common = shift > other.shift ? shift : other.shift;
    return {common, under(common) + other.under(common)};
  }

  // -log softmax of a logit of the row, if this is the whole row's sum. The shift goes back by 1 / kLog2e in two
  // floats, so that the error is one of the loss, not of the logits, however large they are.
  PPA_INLINE float cross_entropy(float logit) const {
    constexpr float kLn2 = 0x1.62e43p-1f, kLn2Rest = 0x1.f8ff94p-28f;
    return logf(sum) + fmaf(shift, kLn2Rest, fmaf(shift, kLn2, -logit));
  }
};

// A logit's term under a shift.
PPA_INLINE float softmax_term(float logit, float shift) { return exp2_poly(fmaf(logit, kLog2e, -shift)); }

}  // namespace ppa
