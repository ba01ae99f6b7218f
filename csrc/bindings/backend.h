// The checks of arguments, and the choice of the backend that a library is built for. Each file of this folder is
// compiled once per backend. Only this folder includes torch, through its stable ABI, so that one binary works with
// every torch from 2.11 on and with every Python.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <string>

#include "ppa/operations.h"

#if defined(PPA_BACKEND_CPU)  // _C: native CPU
#define PPA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(ppa_fast, CPU, m)
namespace backend = ppa::cpu;
#elif defined(PPA_SIMT)  // the CUDA sources on the SIMT harness, for CPU tensors; tests only
#define PPA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(ppa_fast_simt, CPU, m)
namespace backend = ppa::cuda;
#else  // _C_cuda
#define PPA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(ppa_fast, CUDA, m)
#define PPA_BACKEND_CUDA
namespace backend = ppa::cuda;
#endif

namespace ppa::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline const char* name_of(ScalarType type) { return torch::headeronly::toString(type); }

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

// Raises a RuntimeError that names the argument, unless it is a contiguous tensor of one of these types on the device
// of the backend.
inline void expect_contiguous(const Tensor& tensor, const char* name, std::initializer_list<ScalarType> types) {
  bool fits = false;
  std::string wanted;
  for (const ScalarType type : types) {
    fits = fits || tensor.scalar_type() == type;
    wanted += std::string(wanted.empty() ? "" : " or ") + name_of(type);
  }
  STD_TORCH_CHECK(fits, name, ": found ", name_of(tensor.scalar_type()), ", expected ", wanted);
  STD_TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
#ifdef PPA_BACKEND_CUDA
  STD_TORCH_CHECK(tensor.is_cuda(), name, ": expected a tensor on a CUDA device");
#else
  STD_TORCH_CHECK(tensor.is_cpu(), name, ": expected a tensor on the CPU");
#endif
}

// The same, for a tensor that must also have this shape (-1: any size).
inline void expect(const Tensor& tensor, const char* name, std::initializer_list<ScalarType> types,
                   std::initializer_list<int64_t> shape) {
  expect_contiguous(tensor, name, types);
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
  std::string wanted;
  int64_t i = 0;
  for (const int64_t size : shape) {
    fits = fits && (size < 0 || tensor.size(i) == size);
    wanted += (i++ ? ", " : "") + (size < 0 ? std::string("any") : std::to_string(size));
  }
  STD_TORCH_CHECK(fits, name, ": found shape ", shape_of(tensor), ", expected [", wanted, "]");
}

inline void expect_same_device(const Tensor& tensor, const char* name, const Tensor& other, const char* other_name) {
  STD_TORCH_CHECK(tensor.get_device_index() == other.get_device_index(), name, ": on another device than ", other_name);
}

inline DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      return DType::kFloat32;
  }
}

// An uninitialized tensor on the device of `like`.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::new_empty(like, shape, type);
}

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Makes the tensor's device the current one during its lifetime, and holds the context for the launchers.
class Launch {
 public:
  explicit Launch(const Tensor& tensor);

  const backend::Context& context() const { return context_; }

  static void check(Status status, const char* operation) {
    STD_TORCH_CHECK(status == nullptr, operation, ": ", status);
  }

 private:
#ifdef PPA_BACKEND_CUDA
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  backend::Context context_;
};

}  // namespace ppa::bindings
