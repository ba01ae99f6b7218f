#include "ppa/infonce.h"

#include <algorithm>

#include "cpu/multiversion.h"
#include "ppa/operations.h"
#include "ppa/ring.h"

namespace ppa::cpu {

namespace {

// Partial sums of a reduction. Fixed, so that the order of additions does not depend on the vector width.
constexpr int64_t kLanes = 16;

// Dot products of a chunk. They stay in the L2 cache between the two matrix products.
constexpr int64_t kChunk = int64_t{1} << 19;  // floats: 2 MB
constexpr int64_t kMinColumns = 512, kMaxColumns = 8192;

constexpr int64_t kGrain = 1 << 14;  // minimum elements per thread

int64_t grain_of_rows(int64_t elements) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(elements, 1)); }

// Turns a row of dot products into weights, which are 0 for keys of the query's own group. Reads and writes up to the
// next multiple of kLanes after n.
PPA_MULTIVERSION Softmax weigh(float* __restrict dots, const int64_t* __restrict groups, int64_t group, int64_t n,
                               float scale) {
  for (int64_t j = 0; j < n; ++j) dots[j] = groups[j] == group ? -INFINITY : dots[j];
  const int64_t end = ceil_div(n, kLanes) * kLanes;
  for (int64_t j = n; j < end; ++j) dots[j] = -INFINITY;

  float max[kLanes], sum[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) max[l] = -INFINITY;
  for (int64_t j = 0; j < end; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) max[l] = dots[j + l] > max[l] ? dots[j + l] : max[l];
  }
  for (int64_t l = 1; l < kLanes; ++l) max[0] = max[l] > max[0] ? max[l] : max[0];

  const float shift = softmax_shift(max[0], scale);
  for (int64_t l = 0; l < kLanes; ++l) sum[l] = 0;
  for (int64_t j = 0; j < end; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      const float weight = softmax_weight(dots[j + l], shift, scale);
      dots[j + l] = weight;
      sum[l] += weight;
    }
  }
  for (int64_t l = 1; l < kLanes; ++l) sum[0] += sum[l];
  return {max[0], sum[0]};
}

// The softmax states of a query, one per part.
struct States {
  const InfoNceArgs& args;
  int64_t query;

  Softmax softmax(int64_t part) const { return {args.max[part * args.n + query], args.sum[part * args.n + query]}; }
  void set(int64_t part, Softmax state) const {
    args.max[part * args.n + query] = state.max;
    args.sum[part * args.n + query] = state.sum;
  }
  float* weighted(int64_t part) const { return args.weighted + (part * args.n + query) * args.ring.dim; }

  // Merges part 1 into part 0.
  void join() const {
    const SoftmaxMerge merged = softmax_merge(softmax(0), softmax(1), args.scale);
    set(0, merged.state);
    float* to = weighted(0);
    const float* from = weighted(1);
    for (int64_t d = 0; d < args.ring.dim; ++d) to[d] = merged.of_a * to[d] + merged.of_b * from[d];
  }
};

template <typename T>
void finish(const InfoNceArgs& args, int64_t i) {
  const int64_t dim = args.ring.dim;
  const T *query = static_cast<const T*>(args.query) + i * dim, *key = static_cast<const T*>(args.positive) + i * dim;
  float dot[kLanes] = {};
  for (int64_t d = 0; d < dim; ++d) dot[d % kLanes] += to_float(query[d]) * to_float(key[d]);
  for (int64_t l = 1; l < kLanes; ++l) dot[0] += dot[l];

  const States states{args, i};
  states.join();
  const InfoNce result = infonce_of(states.softmax(0), dot[0], args.scale);
  args.loss[i] = result.loss;
  args.top1[i] = result.top1;
  const float* weighted = states.weighted(0);
  for (int64_t d = 0; d < dim; ++d) {
    const float gradient = result.weighted_factor * weighted[d] - result.key_factor * to_float(key[d]);
    args.dq[i * dim + d] = gradient * args.inverse_temperature;
  }
}

}  // namespace

InfoNcePlan infonce_plan(const Context&, DType, int64_t n, int64_t, int64_t rows) {
  const int64_t columns = std::min(std::clamp(kChunk / n, kMinColumns, kMaxColumns), rows);
  return {2, ceil_div(columns, 64) * 64, DType::kFloat32};
}

Status infonce_chunk(const Context& context, const InfoNceArgs& args, const InfoNceChunk& chunk) {
  parallel(context, args.n, grain_of_rows(chunk.rows), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const States states{args, i};
      if (chunk.first) {
        states.set(0, kNoNegatives);
        std::fill_n(states.weighted(0), args.ring.dim, 0.0f);
      } else {
        states.join();
      }
      states.set(1, weigh(chunk.dots + i * chunk.stride, args.ring.groups + chunk.first_row, args.groups[i], chunk.rows,
                          args.scale));
    }
  });
  return nullptr;
}

Status infonce_finish(const Context& context, const InfoNceArgs& args) {
  with_type(args.ring.type, [&](auto stored) {
    using T = decltype(stored);
    parallel(context, args.n, grain_of_rows(args.ring.dim), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) finish<T>(args, i);
    });
  });
  if (args.step_indices == nullptr) return nullptr;
  return enqueue(context, {args.ring, args.positive, args.ring.type, args.groups, args.step_indices, args.n});
}

}  // namespace ppa::cpu
