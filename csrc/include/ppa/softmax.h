// The softmax cross-entropy of a row of logits, in base 2: e^z is computed as 2^(z kLog2e).
#pragma once

#include "ppa/exp.h"

namespace ppa {

constexpr float kLog2e = 0x1.715476p0f;

// The sum of 2^(z kLog2e) over some logits z of a row, stored as sum * 2^shift, where 2^shift is the largest term.
struct RowSum {
  float shift, sum;

  // The sum over no logits. The shift is finite, because -inf - (-inf) is NaN if a logit is -inf.
  static PPA_INLINE RowSum empty() { return {-0x1.fffffep127f, 0.0f}; }

  // The shift after logits up to `largest` are added.
  PPA_INLINE float shift_with(float largest) const {
    const float candidate = largest * kLog2e;
    return candidate > shift ? candidate : shift;
  }

  // The sum relative to another shift, which must not be smaller than this one.
  PPA_INLINE float under(float other) const { return sum * exp2_poly(shift - other); }

  PPA_INLINE RowSum merged(RowSum other) const {
    const float common = shift > other.shift ? shift : other.shift;
    return {common, under(common) + other.under(common)};
  }

  // -log softmax of a logit of the row, if this is the sum over the complete row. ln 2 is stored in two floats, so that
  // the error is relative to the loss and does not grow with the logits.
  PPA_INLINE float cross_entropy(float logit) const {
    constexpr float kLn2 = 0x1.62e43p-1f, kLn2Rest = 0x1.f8ff94p-28f;
    return logf(sum) + fmaf(shift, kLn2Rest, fmaf(shift, kLn2, -logit));
  }
};

// The term of a logit, relative to a shift.
PPA_INLINE float softmax_term(float logit, float shift) { return exp2_poly(fmaf(logit, kLog2e, -shift)); }

}  // namespace ppa
