#include <limits>

#include "cpu/multiversion.h"
#include "ppa/operations.h"
#include "ppa/softmax.h"

namespace ppa::cpu {

namespace {

// Logits per block. As floats they stay in the L1 cache between the loops over the block, each of which is vectorized.
constexpr int64_t kBlock = 2048;

// Reduces a block with a tree of element-wise operations. They vectorize, and round identically in every version.
template <typename F>
[[gnu::always_inline]] inline float tree(const float* x, const F& combine) {
  alignas(64) float work[kBlock / 4];
  const float* from = x;
  for (int64_t quarter = kBlock / 4; quarter >= 8; quarter /= 4) {
    for (int64_t i = 0; i < quarter; ++i) {
      work[i] = combine(combine(from[i], from[i + quarter]), combine(from[i + 2 * quarter], from[i + 3 * quarter]));
    }
    from = work;
  }
  float result = work[0];
  for (int64_t i = 1; i < 8; ++i) result = combine(result, work[i]);
  return result;
}

// Reads a row twice: for the sum of the exponentials, and for the gradient. The second read comes from the L2 cache.
// Computing the exponentials again costs less than storing them as floats.
template <typename T>
[[gnu::always_inline]] inline float row(T* __restrict logits, const T* __restrict bias, int64_t label,
                                        int64_t vocab_size, int64_t stride) {
  alignas(64) float z[kBlock];
  const float label_logit = to_float(logits[label]) + to_float(bias[label]);

  RowSum sum = RowSum::empty();
  for (int64_t at = 0; at < vocab_size; at += kBlock) {
    const int64_t n = vocab_size - at < kBlock ? vocab_size - at : kBlock;
    for (int64_t i = 0; i < n; ++i) z[i] = to_float(logits[at + i]) + to_float(bias[at + i]);
    for (int64_t i = n; i < kBlock; ++i) z[i] = -std::numeric_limits<float>::infinity();
    const float shift = sum.shift_with(tree(z, [](float a, float b) { return a > b ? a : b; }));
    for (int64_t i = 0; i < kBlock; ++i) z[i] = softmax_term(z[i], shift);
    sum = {shift, sum.under(shift) + tree(z, [](float a, float b) { return a + b; })};
  }

  const float inverse = 1.0f / sum.sum;
  for (int64_t i = 0; i < vocab_size; ++i) {
    logits[i] = from_float<T>(softmax_term(to_float(logits[i]) + to_float(bias[i]), sum.shift) * inverse);
  }
  logits[label] = from_float<T>(softmax_term(label_logit, sum.shift) * inverse - 1.0f);
  for (int64_t i = vocab_size; i < stride; ++i) logits[i] = T{};
  return sum.cross_entropy(label_logit);
}

PPA_MULTIVERSION float row_float32(float* logits, const float* bias, int64_t label, int64_t vocab_size,
                                   int64_t stride) {
  return row(logits, bias, label, vocab_size, stride);
}

PPA_MULTIVERSION float row_bfloat16(bfloat16* logits, const bfloat16* bias, int64_t label, int64_t vocab_size,
                                    int64_t stride) {
  return row(logits, bias, label, vocab_size, stride);
}

PPA_MULTIVERSION float row_float16(float16* logits, const float16* bias, int64_t label, int64_t vocab_size,
                                   int64_t stride) {
  return row(logits, bias, label, vocab_size, stride);
}

template <typename T, typename Row>
Status rows(const Context& context, const CrossEntropyArgs& args, const Row& row) {
  T* logits = static_cast<T*>(args.logits);
  const T* bias = static_cast<const T*>(args.bias);
  parallel(context, args.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      args.loss[i] = row(logits + i * args.stride, bias, args.labels[i], args.vocab_size, args.stride);
    }
  });
  return nullptr;
}

}  // namespace

Status cross_entropy(const Context& context, const CrossEntropyArgs& args) {
  switch (args.type) {
    case DType::kBFloat16:
      return rows<bfloat16>(context, args, row_bfloat16);
    case DType::kFloat16:
      return rows<float16>(context, args, row_float16);
    default:
      return rows<float>(context, args, row_float32);
  }
}

}  // namespace ppa::cpu
