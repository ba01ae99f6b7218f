#include "bindings/backend.h"

namespace ppa::bindings {

// cross_entropy_(Tensor(a!) logits, Tensor bias, Tensor labels, int vocab_size) -> Tensor
Tensor cross_entropy(Tensor logits, Tensor bias, Tensor labels, int64_t vocab_size) {
  expect(logits, "logits", {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}, {-1, -1});
  const int64_t rows = logits.size(0), stride = logits.size(1);
  const auto aligned = [](const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0; };
  STD_TORCH_CHECK(stride % 64 == 0 && stride <= 1 << 30, "logits: found rows of ", stride,
                  ", expected a multiple of 64 up to 2^30");
  STD_TORCH_CHECK(aligned(logits), "logits: expected an address that is a multiple of 16");
  STD_TORCH_CHECK(vocab_size >= 1 && vocab_size <= stride, "vocab_size: found ", vocab_size, ", expected 1 to ", stride,
                  ", the size of the rows of logits");
  expect(labels, "labels", {ScalarType::Long}, {rows});
  expect_same_device(labels, "labels", logits, "logits");
  expect(bias, "bias", {logits.scalar_type()}, {stride});
  expect_same_device(bias, "bias", logits, "logits");
  STD_TORCH_CHECK(aligned(bias), "bias: expected an address that is a multiple of 16");
  const int64_t* ids = data<const int64_t>(labels);
#ifdef PPA_BACKEND_CPU
  for (int64_t i = 0; i < rows; ++i) {
    STD_TORCH_CHECK(ids[i] >= 0 && ids[i] < vocab_size, "labels: row ", i, " has ", ids[i], ", expected 0 to ",
                    vocab_size - 1);
  }
#endif
  Tensor loss = empty(logits, {rows}, ScalarType::Float);
  if (rows == 0) return loss;
  const Launch launch(logits);
  const CrossEntropyArgs args{
      data<void>(logits), data<const void>(bias), ids, data<float>(loss), dtype_of(logits), rows, stride, vocab_size};
  Launch::check(backend::cross_entropy(launch.context(), args), "cross_entropy_");
  return loss;
}

PPA_LIBRARY(m) { m.impl("cross_entropy_", TORCH_BOX(&cross_entropy)); }

}  // namespace ppa::bindings
