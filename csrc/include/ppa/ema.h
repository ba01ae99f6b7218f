// The momentum update (MoCo, equation 2).
#pragma once

#include <cmath>

#include "ppa/common.h"

namespace ppa {

// k <- fmaf(m, k, (1 - m) q). `rest` is 1 - m, computed in double and rounded once.
PPA_INLINE float ema_step(float k, float q, float momentum, float rest) { return fmaf(momentum, k, rest * q); }

}  // namespace ppa
