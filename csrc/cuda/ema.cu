// The momentum update over any number of flat buffers. With a 16-bit working copy it moves 14 bytes per parameter: it
// reads k and q, and writes k and the copy.

#include "ppa/ema.h"

#include "cuda/device.cuh"
#include "ppa/operations.h"

namespace ppa::cuda {

constexpr int kEmaThreads = 256;
constexpr int kEmaVectors = 4;  // of 4 floats per thread: 8 loads of 16 bytes in flight
constexpr int64_t kEmaBlock = kEmaThreads * kEmaVectors * 4;
constexpr int kEmaTensors = 64;  // per launch: their descriptors are a kernel parameter, at most 4 KB

struct EmaTensors {
  EmaArgs tensors[kEmaTensors];
  int64_t end_block[kEmaTensors];  // one past the last block of the tensor
  float momentum, rest;
};

struct alignas(8) Half4 {
  uint16_t bits[4];
};

PPA_INLINE Half4 round4(float4 k, DType type) {
  if (type == DType::kBFloat16) {
    return {from_float<bfloat16>(k.x).bits, from_float<bfloat16>(k.y).bits, from_float<bfloat16>(k.z).bits,
            from_float<bfloat16>(k.w).bits};
  }
  return {from_float<float16>(k.x).bits, from_float<float16>(k.y).bits, from_float<float16>(k.z).bits,
          from_float<float16>(k.w).bits};
}

PPA_INLINE void store_working(const EmaArgs& tensor, int64_t i, float k) {
  if (tensor.working == nullptr) return;
  switch (tensor.working_type) {
    case DType::kFloat32:
      static_cast<float*>(tensor.working)[i] = k;
      break;
    case DType::kBFloat16:
      static_cast<bfloat16*>(tensor.working)[i] = from_float<bfloat16>(k);
      break;
    case DType::kFloat16:
      static_cast<float16*>(tensor.working)[i] = from_float<float16>(k);
      break;
  }
}

PPA_INLINE bool aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

__global__ void __launch_bounds__(kEmaThreads) ema_kernel(const __grid_constant__ EmaTensors list) {
  int t = 0;
  while (blockIdx.x >= list.end_block[t]) ++t;
  const EmaArgs& tensor = list.tensors[t];
  const int64_t begin = (blockIdx.x - (t ? list.end_block[t - 1] : 0)) * kEmaBlock;
  const bool whole = begin + kEmaBlock <= tensor.n && aligned(tensor.master, 16) && aligned(tensor.source, 16) &&
                     aligned(tensor.working, 16);
  if (!whole) {
    const int64_t end = begin + kEmaBlock < tensor.n ? begin + kEmaBlock : tensor.n;
    for (int64_t i = begin + threadIdx.x; i < end; i += kEmaThreads) {
      const float k = ema_step(tensor.master[i], tensor.source[i], list.momentum, list.rest);
      tensor.master[i] = k;
      store_working(tensor, i, k);
    }
    return;
  }
  float4* master = reinterpret_cast<float4*>(tensor.master + begin) + threadIdx.x;
  const float4* source = reinterpret_cast<const float4*>(tensor.source + begin) + threadIdx.x;
  float4 k[kEmaVectors], q[kEmaVectors];
#pragma unroll
  for (int v = 0; v < kEmaVectors; ++v) {
    k[v] = master[v * kEmaThreads];
    q[v] = source[v * kEmaThreads];
  }
#pragma unroll
  for (int v = 0; v < kEmaVectors; ++v) {
    k[v].x = ema_step(k[v].x, q[v].x, list.momentum, list.rest);
    k[v].y = ema_step(k[v].y, q[v].y, list.momentum, list.rest);
    k[v].z = ema_step(k[v].z, q[v].z, list.momentum, list.rest);
    k[v].w = ema_step(k[v].w, q[v].w, list.momentum, list.rest);
    master[v * kEmaThreads] = k[v];
    const int64_t at = begin / 4 + v * kEmaThreads + threadIdx.x;
    if (tensor.working == nullptr) continue;
    if (tensor.working_type == DType::kFloat32) {
      static_cast<float4*>(tensor.working)[at] = k[v];
    } else {
      static_cast<Half4*>(tensor.working)[at] = round4(k[v], tensor.working_type);
    }
  }
}

Status ema(const Context& context, const EmaArgs* tensors, int64_t count, double momentum) {
  EmaTensors list{};
  list.momentum = static_cast<float>(momentum);
  list.rest = static_cast<float>(1.0 - momentum);
  for (int64_t first = 0; first < count; first += kEmaTensors) {
    const int64_t here = count - first < kEmaTensors ? count - first : kEmaTensors;
    int64_t blocks = 0;
    for (int64_t t = 0; t < here; ++t) {
      list.tensors[t] = tensors[first + t];
      list.end_block[t] = blocks += ceil_div(list.tensors[t].n, kEmaBlock);
    }
    const Status status =
        launch(ema_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kEmaThreads), 0, context.stream, list);
    if (status != nullptr) return status;
  }
  return nullptr;
}

}  // namespace ppa::cuda
