#include "bindings/backend.h"

#ifdef PPA_BACKEND_CUDA
#include <cuda_runtime.h>
#include <dlfcn.h>
#endif

namespace ppa::bindings {

#if defined(PPA_BACKEND_CPU)

Launch::Launch(const Tensor&) {
  context_.parallel_for = [](int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                             void* context) {
    STD_TORCH_CHECK(torch_parallel_for(begin, end, grain, body, context) == 0, "parallel_for failed");
  };
}

#elif defined(PPA_SIMT)

Launch::Launch(const Tensor&) : context_{nullptr, 2, 227 * 1024} {}

#else

// `ppa-fast doctor` calls these functions; they need no device.
extern "C" __attribute__((visibility("default"))) const char* ppa_architectures() { return PPA_ARCHITECTURES; }
extern "C" __attribute__((visibility("default"))) int ppa_finds_torch_stream();

namespace {

// Returns torch's current stream. The function is part of libtorch_cuda, which a CPU build of torch does not have and
// which torch loads privately. It is looked up at run time, so that this library links and loads without it.
using CurrentStream = AOTITorchError (*)(int32_t, void**);

CurrentStream find_current_stream() {
  void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  return reinterpret_cast<CurrentStream>(symbol);
}

}  // namespace

int ppa_finds_torch_stream() { return find_current_stream() != nullptr; }

Launch::Launch(const Tensor& tensor) : guard_(tensor.get_device_index()), context_{nullptr, 0, 0} {
  static const CurrentStream current_stream = find_current_stream();
  STD_TORCH_CHECK(current_stream != nullptr, "this build of torch has no CUDA (libtorch_cuda.so is not loaded)");
  const int device = tensor.get_device_index();
  STD_TORCH_CHECK(current_stream(device, &context_.stream) == 0, "torch has no current CUDA stream");
  cudaError_t error = cudaDeviceGetAttribute(&context_.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&context_.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA device ", device, ": ", cudaGetErrorString(error));
}

#endif

}  // namespace ppa::bindings
