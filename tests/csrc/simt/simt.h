// The SIMT harness: CUDA's language extensions and built-ins on the CPU, so that g++ compiles the sources of csrc/cuda
// and they run thread by thread. Blocks run one after another. The threads of a block are fibers. A fiber yields only
// where it waits for others (at a barrier or a warp-wide instruction) and at its end. Between two such points a thread
// runs alone, so it may be far ahead of the other threads or far behind them. If a barrier is missing, the result is
// therefore wrong in some order:
//   PPA_SIMT_ORDER=forward|reverse|shuffle:<seed>   the order of blocks, warps and lanes (read at every launch)
//   PPA_SIMT_TRACE=<file>                           receives the name of each launched kernel, once per process
// Compile with -DPPA_SIMT -fno-strict-aliasing -Wno-unknown-pragmas, link simt.cpp, do not strip.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <string>
#include <tuple>
#include <type_traits>

#include "ppa/common.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__  // empty, because the standard library writes __attribute__((__noinline__))
#define __align__(n) __attribute__((aligned(n)))

// The tag becomes part of the mangled name of the variable. The harness finds the variables by it in the symbol table
// of the library, and fills them with ones before every block.
#define __shared__ static __attribute__((abi_tag("ppa_shared")))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define PPA_SIMT_VECTORS(T, name)                               \
  struct __align__(8) name##2 { T x, y; };                      \
  struct __align__(16) name##4 { T x, y, z, w; };               \
  constexpr name##2 make_##name##2(T x, T y) { return {x, y}; } \
  constexpr name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
PPA_SIMT_VECTORS(int, int)
PPA_SIMT_VECTORS(unsigned, uint)
PPA_SIMT_VECTORS(float, float)
#undef PPA_SIMT_VECTORS

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
inline constexpr int warpSize = 32;

namespace ppa::simt {

// The source line of a wait. Threads that wait for each other must be at the same line.
using Site = std::source_location;

// Reports the kernel, block and thread that are running, and aborts.
[[noreturn]] void fail(const std::string& what, Site where);

// Waits until every lane of `mask` has arrived. Then `complete` computes the results of all lanes from their operands
// (operands[lane] is null for a lane that is not in `mask`).
using Complete = void (*)(void* const (&operands)[32], unsigned lanes);
void warp_collective(const char* name, unsigned mask, Complete complete, void* operand, Site where);

// Waits for the threads of the block. Returns how many arrived, and for how many of them the predicate holds.
struct Arrivals {
  int threads;
  int holding;
};
Arrivals block_barrier(const char* name, bool predicate, Site where);

template <typename T>
T exchange(T* address, T value) {
  const T old = *address;
  *address = value;
  return old;
}

unsigned lane();
unsigned char* dynamic_shared();
void copy_async(const char* name, size_t bytes, void* shared, const void* global, bool valid, Site where);
void commit_copies();
void wait_copies(size_t pending);

Status run(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* context);

template <typename T>
struct Shuffle {
  T value;
  int source;
  T result;
};

// The value of a lane that does not take part is undefined. Here it is all ones.
template <typename T>
void complete_shuffle(void* const (&operands)[32], unsigned lanes) {
  for (int i = 0; i < 32; ++i) {
    if (!(lanes >> i & 1)) continue;
    auto* mine = static_cast<Shuffle<T>*>(operands[i]);
    if (lanes >> mine->source & 1) {
      mine->result = static_cast<Shuffle<T>*>(operands[mine->source])->value;
    } else {
      memset(&mine->result, 0xff, sizeof(T));
    }
  }
}

// `inside`: whether this shuffle may read the lane `source`. If not, the lane keeps its own value.
template <typename T>
T shuffle(const char* name, unsigned mask, T value, int source, bool inside, int width, Site where) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "CUDA shuffles 4 or 8 bytes");
  if (width < 1 || width > 32 || (width & (width - 1)))
    fail("a shuffle's width must be a power of two up to 32", where);
  Shuffle<T> operand{value, inside ? source : static_cast<int>(lane()), value};
  warp_collective(name, mask, complete_shuffle<T>, &operand, where);
  return operand.result;
}

// The lanes of `mask` whose predicate holds.
unsigned ballot(const char* name, unsigned mask, bool predicate, Site where);

void mma_m16n8k16(DType dtype, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site where);
void ldmatrix_x4(bool transposed, uint32_t (&r)[4], const void* row, Site where);

}  // namespace ppa::simt

inline void __syncthreads(ppa::simt::Site where = ppa::simt::Site::current()) {
  ppa::simt::block_barrier("__syncthreads", false, where);
}
inline int __syncthreads_count(int predicate, ppa::simt::Site where = ppa::simt::Site::current()) {
  return ppa::simt::block_barrier("__syncthreads_count", predicate, where).holding;
}
inline int __syncthreads_or(int predicate, ppa::simt::Site where = ppa::simt::Site::current()) {
  return ppa::simt::block_barrier("__syncthreads_or", predicate, where).holding > 0;
}
inline int __syncthreads_and(int predicate, ppa::simt::Site where = ppa::simt::Site::current()) {
  const ppa::simt::Arrivals arrivals = ppa::simt::block_barrier("__syncthreads_and", predicate, where);
  return arrivals.holding == arrivals.threads;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, ppa::simt::Site where = ppa::simt::Site::current()) {
  ppa::simt::warp_collective("__syncwarp", mask, [](void* const(&)[32], unsigned) {}, nullptr, where);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              ppa::simt::Site where = ppa::simt::Site::current()) {
  const int mine = static_cast<int>(ppa::simt::lane());
  return ppa::simt::shuffle("__shfl_sync", mask, value, (mine & -width) + (source & (width - 1)), true, width, where);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  ppa::simt::Site where = ppa::simt::Site::current()) {
  const int mine = static_cast<int>(ppa::simt::lane());
  const int source = (mine ^ lane_mask) & 31;
  return ppa::simt::shuffle("__shfl_xor_sync", mask, value, source, source < (mine & -width) + width, width, where);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   ppa::simt::Site where = ppa::simt::Site::current()) {
  const int mine = static_cast<int>(ppa::simt::lane());
  const int source = mine + static_cast<int>(delta & 31);
  return ppa::simt::shuffle("__shfl_down_sync", mask, value, source, source < (mine & -width) + width, width, where);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 ppa::simt::Site where = ppa::simt::Site::current()) {
  const int mine = static_cast<int>(ppa::simt::lane());
  const int source = mine - static_cast<int>(delta & 31);
  return ppa::simt::shuffle("__shfl_up_sync", mask, value, source, source >= (mine & -width), width, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, ppa::simt::Site where = ppa::simt::Site::current()) {
  return ppa::simt::ballot("__ballot_sync", mask, predicate, where);
}
inline int __any_sync(unsigned mask, int predicate, ppa::simt::Site where = ppa::simt::Site::current()) {
  return ppa::simt::ballot("__any_sync", mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, ppa::simt::Site where = ppa::simt::Site::current()) {
  return ppa::simt::ballot("__all_sync", mask, !predicate, where) == 0;
}

// Only one thread runs at a time, so plain memory operations are atomic.
inline unsigned atomicAdd(unsigned* address, unsigned value) { return ppa::simt::exchange(address, *address + value); }
inline int atomicAdd(int* address, int value) {  // wraps, as unsigned numbers do
  return ppa::simt::exchange(address, static_cast<int>(static_cast<unsigned>(*address) + static_cast<unsigned>(value)));
}
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
  return ppa::simt::exchange(address, *address + value);
}
inline float atomicAdd(float* address, float value) { return ppa::simt::exchange(address, *address + value); }
inline int atomicMax(int* address, int value) {
  return ppa::simt::exchange(address, *address > value ? *address : value);
}
inline int atomicMin(int* address, int value) {
  return ppa::simt::exchange(address, *address < value ? *address : value);
}
inline unsigned atomicMax(unsigned* address, unsigned value) {
  return ppa::simt::exchange(address, *address > value ? *address : value);
}
inline unsigned atomicMin(unsigned* address, unsigned value) {
  return ppa::simt::exchange(address, *address < value ? *address : value);
}
inline int atomicCAS(int* address, int compare, int value) {
  return ppa::simt::exchange(address, *address == compare ? value : *address);
}
inline unsigned atomicCAS(unsigned* address, unsigned compare, unsigned value) {
  return ppa::simt::exchange(address, *address == compare ? value : *address);
}
inline unsigned long long atomicCAS(unsigned long long* address, unsigned long long compare, unsigned long long value) {
  return ppa::simt::exchange(address, *address == compare ? value : *address);
}

inline void __threadfence() {}
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap(ppa::simt::Site where = ppa::simt::Site::current()) {
  ppa::simt::fail("__trap", where);
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }

inline unsigned __float_as_uint(float x) { return ppa::float_bits(x); }
inline float __uint_as_float(unsigned x) { return ppa::bits_float(x); }
inline int __float_as_int(float x) { return static_cast<int>(ppa::float_bits(x)); }
inline float __int_as_float(int x) { return ppa::bits_float(static_cast<uint32_t>(x)); }

inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

// CUDA has min and max for integers of the same width with any signs, and for floats, where they return the number if
// the other argument is a NaN.
template <typename A, typename B>
  requires((std::is_integral_v<A> && std::is_integral_v<B> && sizeof(A) == sizeof(B) && sizeof(A) >= 4) ||
           (std::is_floating_point_v<A> && std::is_floating_point_v<B>))
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) || b != b ? static_cast<T>(a) : static_cast<T>(b);
}
template <typename A, typename B>
  requires((std::is_integral_v<A> && std::is_integral_v<B> && sizeof(A) == sizeof(B) && sizeof(A) >= 4) ||
           (std::is_floating_point_v<A> && std::is_floating_point_v<B>))
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) > static_cast<T>(b) || b != b ? static_cast<T>(a) : static_cast<T>(b);
}

namespace ppa::cuda {

// Runs the complete grid before it returns. Every thread gets its own copy of the arguments, as on a GPU.
template <typename... Parameters, typename... Arguments>
Status launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, [[maybe_unused]] void* stream,
              Arguments... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  } call{kernel, std::tuple<Parameters...>(static_cast<Parameters>(arguments)...)};
  return simt::run(
      reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
      [](void* context) {
        const auto* call = static_cast<const Call*>(context);
        std::apply(call->kernel, call->parameters);
      },
      &call);
}

inline unsigned char* dynamic_shared() { return simt::dynamic_shared(); }

template <typename T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                  simt::Site where = simt::Site::current()) {
  static_assert(std::is_same_v<T, bfloat16> || std::is_same_v<T, float16>);
  simt::mma_m16n8k16(std::is_same_v<T, bfloat16> ? DType::kBFloat16 : DType::kFloat16, d, a, b0, b1, where);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, simt::Site where = simt::Site::current()) {
  simt::ldmatrix_x4(false, r, row, where);
}

inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, simt::Site where = simt::Site::current()) {
  simt::ldmatrix_x4(true, r, row, where);
}

// The bytes are written when this thread waits for their group. Until then the destination holds all ones.
inline void cp_async_16(void* shared, const void* global, bool valid, simt::Site where = simt::Site::current()) {
  simt::copy_async("cp_async_16", 16, shared, global, valid, where);
}

inline void cp_async_8(void* shared, const void* global, bool valid, simt::Site where = simt::Site::current()) {
  simt::copy_async("cp_async_8", 8, shared, global, valid, where);
}

inline void cp_async_commit() { simt::commit_copies(); }

template <int pending>
void cp_async_wait() {
  simt::wait_copies(pending);
}

}  // namespace ppa::cuda
