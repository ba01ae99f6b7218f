#include <vector>

#include "bindings/backend.h"

namespace ppa::bindings {

// ema_(Tensor(a!)[] masters, Tensor[] sources, Tensor(b!)[] working, float momentum) -> ()
void ema(std::vector<Tensor> masters, std::vector<Tensor> sources, std::vector<Tensor> working, double momentum) {
  STD_TORCH_CHECK(momentum >= 0 && momentum <= 1, "momentum: found ", momentum, ", expected 0 to 1");
  STD_TORCH_CHECK(sources.size() == masters.size(), "sources: found ", sources.size(), " tensors, expected ",
                  masters.size(), ", one for each of masters");
  STD_TORCH_CHECK(working.empty() || working.size() == masters.size(), "working: found ", working.size(),
                  " tensors, expected none or ", masters.size());
  std::vector<EmaArgs> tensors;
  for (size_t i = 0; i < masters.size(); ++i) {
    const int64_t n = masters[i].numel();
    const auto same = [&](const Tensor& tensor, const char* name, std::initializer_list<ScalarType> types) {
      expect_contiguous(tensor, name, types);
      STD_TORCH_CHECK(tensor.numel() == n, name, ": tensor ", i, " has ", tensor.numel(), " elements, expected ", n);
      expect_same_device(tensor, name, masters[0], "masters");
    };
    same(masters[i], "masters", {ScalarType::Float});
    same(sources[i], "sources", {ScalarType::Float});
    if (!working.empty()) same(working[i], "working", {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half});
    if (n == 0) continue;
    tensors.push_back({data<float>(masters[i]), data<const float>(sources[i]),
                       working.empty() ? nullptr : data<void>(working[i]),
                       working.empty() ? DType::kFloat32 : dtype_of(working[i]), n});
  }
  if (tensors.empty()) return;
  const Launch launch(masters[0]);
  Launch::check(backend::ema(launch.context(), tensors.data(), static_cast<int64_t>(tensors.size()), momentum), "ema_");
}

PPA_LIBRARY(m) { m.impl("ema_", TORCH_BOX(&ema)); }

}  // namespace ppa::bindings
