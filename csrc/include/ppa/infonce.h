// InfoNCE of one query over parts of the queue: the softmax state of a part, the merge of two states, and the loss.
#pragma once

#include <cmath>

#include "ppa/common.h"
#include "ppa/exp.h"

namespace ppa {

// The softmax state of the negatives of a part: the maximum dot product s_j = q·u_j, and Σ_j w_j, where w_j = 2^(scale
// s_j − shift(max)) and scale is log2(e) / temperature. Together with the vector Σ_j w_j u_j it is an attention state
// (FlashAttention): the states of several parts can be merged in any grouping.
struct Softmax {
  float max, sum;
};

constexpr Softmax kNoNegatives = {-INFINITY, 0.0f};

// The largest weight is 2^8. Rounding a weight to fp16, whose smallest number is 2^-24, loses less than 2^-33 of the
// largest weight. Over 65,536 rows the loss is less than 1e-5 of it.
constexpr float kHeadroom = 8.0f;

// The shift that is subtracted from the exponents of a part. It is rounded once, here, so that fma(scale, s, −shift) is
// the exact difference rounded once, for every temperature.
PPA_INLINE float softmax_shift(float max, float scale) {
  return max == -INFINITY ? 0.0f : fmaf(scale, max, -kHeadroom);
}

PPA_INLINE float softmax_weight(float dot, float shift, float scale) { return exp2_poly(fmaf(scale, dot, -shift)); }

// The factor for the sums of a part when it is merged with a part that has a higher maximum.
PPA_INLINE float softmax_rescale(float max, float higher, float scale) {
  if (max == -INFINITY) return 0.0f;
  return exp2_poly(softmax_shift(max, scale) - softmax_shift(higher, scale));
}

// The merge of two parts: their state, and the factors of the vectors Σ_j w_j u_j of a and b in the sum.
struct SoftmaxMerge {
  Softmax state;
  float of_a, of_b;
};

PPA_INLINE SoftmaxMerge softmax_merge(Softmax a, Softmax b, float scale) {
  const float max = a.max > b.max ? a.max : b.max;
  const float of_a = softmax_rescale(a.max, max, scale), of_b = softmax_rescale(b.max, max, scale);
  return {{max, of_a * a.sum + of_b * b.sum}, of_a, of_b};
}

// The result for a query, from all its negatives and the dot product with its positive key.
struct InfoNce {
  float loss;
  float weighted_factor, key_factor;  // dq = (weighted_factor * weighted - key_factor * positive) / temperature
  bool top1;                          // the positive is strictly greater than every negative
};

// Avoids cancellation: 1 − p+ and a loss near 0 keep their relative precision. If the positive is not finite, the loss
// is not finite either.
PPA_INLINE InfoNce infonce_of(Softmax negatives, float positive, float scale) {
  // The shift of the negatives minus the exponent of the positive, in base 2.
  const float above =
      negatives.max == -INFINITY ? -INFINITY : -fmaf(scale, positive, -softmax_shift(negatives.max, scale));
  const bool easy = above <= 0.0f;
  const float weight = easy ? exp2_poly(above) : 1.0f, own = easy ? 1.0f : exp2_poly(-above);
  const float odds = weight * negatives.sum, total = own + odds, inverse = 1.0f / total;
  const float loss = easy ? log1pf(odds) : fmaf(above, 0x1.62e43p-1f, logf(total));
  return {fmaf(0.0f, positive, loss), weight * inverse, odds * inverse, positive > negatives.max};
}

}  // namespace ppa
