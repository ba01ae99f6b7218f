// InfoNCE of one query against parts of the queue: what is known of a part's softmax, how parts join, and what follows.
#pragma once

#include <cmath>

#include "ppa/common.h"
#include "ppa/exp.h"

namespace ppa {

// The negatives of a part: the highest dot product s_j = q·u_j, and Σ_j w_j, where w_j = 2^(scale s_j − shift(max)) and
// scale is log2(e) / temperature. With the vector Σ_j w_j u_j beside it this is a state of attention (FlashAttention);
// those of several parts join in any grouping.
struct Softmax {
  float max, sum;
};

constexpr Softmax kNoNegatives = {-INFINITY, 0.0f};

// Weights reach 2^8: rounded to fp16, whose smallest number is 2^-24, what is lost is below 2^-33 of the highest one,
// for 65,536 rows together 1e-5.
constexpr float kHeadroom = 8.0f;

// What a part's exponents are relative to. Rounded here alone: fma(scale, s, −shift) is then the exact difference,
// rounded once, however small the temperature.
PPA_INLINE float softmax_shift(float max, float scale) {
  return max == -INFINITY ? 0.0f : fmaf(scale, max, -kHeadroom);
}

PPA_INLINE float softmax_weight(float dot, float shift, float scale) { return exp2_poly(fmaf(scale, dot, -shift)); }

// What the sums of a part are multiplied by when a part with a higher maximum joins it.
PPA_INLINE float softmax_rescale(float max, float higher, float scale) {
  if (max == -INFINITY) return 0.0f;
  return exp2_poly(softmax_shift(max, scale) - softmax_shift(higher, scale));
}

// What follows for a query from all its negatives and the dot product with its positive key.
struct InfoNce {
  float loss;
  float weighted_factor, key_factor;  // dq = (weighted_factor * weighted - key_factor * positive) / temperature
  bool top1;                          // the positive is strictly above every negative
};

// Written so that nothing cancels: 1 − p+ and a loss near 0 keep their relative precision. A positive that is not
// finite gives a loss that is not.
PPA_INLINE InfoNce infonce_of(Softmax negatives, float positive, float scale) {
  // What the weights are relative to, in powers of two above the positive's own.
  const float above =
      negatives.max == -INFINITY ? -INFINITY : -fmaf(scale, positive, -softmax_shift(negatives.max, scale));
  const bool easy = above <= 0.0f;
  const float weight = easy ? exp2_poly(above) : 1.0f, own = easy ? 1.0f : exp2_poly(-above);
  const float odds = weight * negatives.sum, total = own + odds, inverse = 1.0f / total;
  const float loss = easy ? log1pf(odds) : fmaf(above, 0x1.62e43p-1f, logf(total));
  return {fmaf(0.0f, positive, loss), weight * inverse, odds * inverse, positive > negatives.max};
}

}  // namespace ppa
