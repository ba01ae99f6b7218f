// The tests of the SIMT harness itself: small correct kernels, most of them also with a deliberate fault (`faulty`)
// that the harness must detect. tests/csrc/test_simt_harness.py builds and runs them.

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/device.cuh"

namespace ppa::selftest {

using cuda::launch;

constexpr unsigned kAll = 0xffffffffu;

int failures = 0;

template <typename T>
void expect(const char* what, T actual, T expected) {
  if (actual == expected) return;
  ++failures;
  fprintf(stderr, "%s: %g, expected %g\n", what, static_cast<double>(actual), static_cast<double>(expected));
}

void start(Status status) {
  if (status == nullptr) return;
  ++failures;
  fprintf(stderr, "launch: %s\n", status);
}

// Sums over a block, with shuffles within warps and shared memory between warps.
template <typename T>
__device__ T block_sum(T value) {
  __shared__ T partial[32];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAll, value, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  T total = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += partial[warp];
  __syncthreads();
  return total;
}

template <typename T>
__global__ void sum_kernel(const T* in, T* out) {
  const T total = block_sum(in[blockIdx.x * blockDim.x + threadIdx.x]);
  const T twice = block_sum(static_cast<T>(2 * in[blockIdx.x * blockDim.x + threadIdx.x]));
  if (threadIdx.x == 0) out[blockIdx.x] = total + twice;
}

template <typename T>
void sums() {
  constexpr int kBlocks = 3;
  constexpr int kThreads = 256;
  std::vector<T> in(kBlocks * kThreads);
  std::vector<T> out(kBlocks);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<T>(i * 7 % 1000);
  start(launch(sum_kernel<T>, dim3(kBlocks), dim3(kThreads), 0, nullptr, in.data(), out.data()));
  for (int block = 0; block < kBlocks; ++block) {
    T expected = 0;
    for (int i = 0; i < kThreads; ++i) expected += 3 * in[block * kThreads + i];
    expect("sum", out[block], expected);
  }
}

struct Exchanged {
  unsigned up, down, from_five, exclusive, ballot;
  int any, all, none, some_of_half, count, some, every, alone;
};

__global__ void exchange_kernel(Exchanged* out) {
  const unsigned i = threadIdx.x;
  Exchanged mine;
  mine.up = __shfl_up_sync(kAll, i, 3, 8);
  mine.down = __shfl_down_sync(kAll, i, 3, 16);
  mine.from_five = __shfl_sync(kAll, i, 5, 8);
  mine.exclusive = __shfl_xor_sync(kAll, i, 8, 8);
  mine.ballot = __ballot_sync(kAll, i % 3 == 0);
  mine.any = __any_sync(kAll, i == 40);
  mine.all = __all_sync(kAll, i != 40);
  mine.none = __any_sync(kAll, false);
  mine.some_of_half = i % 2 == 0 ? __any_sync(0x55555555u, i == 2) : __any_sync(0xaaaaaaaau, i == 2);
  mine.count = __syncthreads_count(i % 4 == 0);
  mine.some = __syncthreads_or(i == 7);
  mine.every = __syncthreads_and(i != 7);
  mine.alone = 0;
  if (i >= 32) {
    out[i] = mine;
    return;
  }
  mine.alone = __syncthreads_count(true);  // the upper warp has exited
  out[i] = mine;
}

void exchange() {
  std::vector<Exchanged> out(64);
  start(launch(exchange_kernel, dim3(1), dim3(64), 0, nullptr, out.data()));
  for (unsigned i = 0; i < 64; ++i) {
    expect("up", out[i].up, i % 8 < 3 ? i : i - 3);
    expect("down", out[i].down, i % 16 > 12 ? i : i + 3);
    expect("from five", out[i].from_five, i / 8 * 8 + 5);
    expect("exclusive", out[i].exclusive, i & 8 ? i - 8 : i);  // only later segments are out of reach
    expect("ballot", out[i].ballot, i < 32 ? 0x49249249u : 0x92492492u);
    expect("any", out[i].any, i < 32 ? 0 : 1);
    expect("all", out[i].all, i < 32 ? 1 : 0);
    expect("none", out[i].none, 0);
    expect("some of half", out[i].some_of_half, i < 32 && i % 2 == 0 ? 1 : 0);
    expect("count", out[i].count, 16);
    expect("some", out[i].some, 1);
    expect("every", out[i].every, 0);
    expect("alone", out[i].alone, i < 32 ? 32 : 0);
  }
}

// d = a b, where a and b are 16x16 and row-major in shared memory. b is loaded as transposed tiles, or is passed as its
// transpose.
template <typename T, bool b_is_transposed>
__global__ void product_kernel(const T* a, const T* b, float* d) {
  __shared__ __align__(16) T shared_a[16][24];
  __shared__ __align__(16) T shared_b[16][24];
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 256; i += 32) {
    shared_a[i / 16][i % 16] = a[i];
    shared_b[i / 16][i % 16] = b[i];
  }
  __syncthreads();
  uint32_t fragment_a[4];
  uint32_t fragment_b[4];  // of columns 0 to 7 (two registers) and 8 to 15
  cuda::ldmatrix_x4(fragment_a, &shared_a[lane % 16][lane / 16 * 8]);
  if constexpr (b_is_transposed) {
    cuda::ldmatrix_x4(fragment_b, &shared_b[lane % 8 + lane / 16 * 8][lane / 8 % 2 * 8]);
  } else {
    cuda::ldmatrix_x4_trans(fragment_b, &shared_b[lane % 16][lane / 16 * 8]);
  }
  for (unsigned half = 0; half < 2; ++half) {
    float sum[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    cuda::mma_m16n8k16<T>(sum, fragment_a, fragment_b[2 * half], fragment_b[2 * half + 1]);
    for (unsigned i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 16 + half * 8 + lane % 4 * 2 + i % 2] = sum[i];
  }
}

template <typename T, bool b_is_transposed>
void product() {
  std::vector<T> a(256);
  std::vector<T> b(256);
  std::vector<float> d(256, NAN);
  for (int i = 0; i < 256; ++i) {
    a[i] = from_float<T>(static_cast<float>(i * 37 % 101 - 50) / 8);  // exact in both types, and so are the sums
    b[i] = from_float<T>(static_cast<float>(i * 53 % 97 - 48) / 4);
  }
  start(launch(product_kernel<T, b_is_transposed>, dim3(1), dim3(32), 0, nullptr, a.data(), b.data(), d.data()));
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) {
      float expected = 1.0f;
      for (int k = 0; k < 16; ++k) {
        expected += to_float(a[i * 16 + k]) * to_float(b_is_transposed ? b[j * 16 + k] : b[k * 16 + j]);
      }
      expect("product", d[i * 16 + j], expected);
    }
  }
}

// Two stages: one is read while the next is being copied. The fault: the last wait leaves a group incomplete.
__global__ void copy_kernel(const float4* in, float4* out, int stages, bool faulty) {
  float4* const buffer = reinterpret_cast<float4*>(cuda::dynamic_shared());
  const unsigned i = threadIdx.x;
  const unsigned n = blockDim.x;
  cuda::cp_async_16(&buffer[i], &in[i], true);
  cuda::cp_async_commit();
  for (int stage = 0; stage < stages; ++stage) {
    const bool last = stage + 1 == stages;
    if (!last) {
      const bool valid = i % 2 == 0;  // an invalid source must not be read; it may be out of bounds
      cuda::cp_async_16(&buffer[(stage + 1) % 2 * n + i], valid ? &in[(stage + 1) * n + i] : in + stages * n, valid);
      cuda::cp_async_commit();
    }
    if (last && !faulty) {
      cuda::cp_async_wait<0>();
    } else {
      cuda::cp_async_wait<1>();
    }
    __syncthreads();
    out[stage * n + i] = buffer[stage % 2 * n + (i + 1) % n];
    __syncthreads();
  }
}

// Reads the destination of an incomplete copy, which must hold neither the old nor the new value.
__global__ void in_flight_kernel(const unsigned* in, unsigned* out) {
  unsigned* const shared = reinterpret_cast<unsigned*>(cuda::dynamic_shared());
  shared[3] = 7;
  cuda::cp_async_16(shared, in, true);
  cuda::cp_async_wait<0>();  // the copy is not yet in a group
  out[0] = shared[3];
  cuda::cp_async_commit();
  out[1] = shared[3];
  cuda::cp_async_wait<0>();
  out[2] = shared[3];
}

void in_flight() {
  const uint4 in = make_uint4(1, 2, 3, 4);
  unsigned out[3] = {};
  start(launch(in_flight_kernel, dim3(1), dim3(1), sizeof(in), nullptr, &in.x, out));
  expect("copy without a group", out[0], kAll);
  expect("copy before the wait", out[1], kAll);
  expect("copy after the wait", out[2], 4u);
}

void copies(bool faulty) {
  constexpr int kStages = 3;
  constexpr int kThreads = 64;
  std::vector<float4> in(kStages * kThreads);
  std::vector<float4> out(in.size());
  for (size_t i = 0; i < in.size(); ++i) in[i] = make_float4(1.0f + static_cast<float>(i), 2.0f, 3.0f, 4.0f);
  start(launch(copy_kernel, dim3(1), dim3(kThreads), 2 * kThreads * sizeof(float4), nullptr, in.data(), out.data(),
               kStages, faulty));
  for (int i = 0; i < kStages * kThreads; ++i) {
    const int source = i / kThreads * kThreads + (i + 1) % kThreads;
    const bool zero = i >= kThreads && source % 2 == 1;
    expect("copied x", out[i].x, zero ? 0.0f : in[source].x);
    expect("copied w", out[i].w, zero ? 0.0f : 4.0f);
  }
}

struct Counters {
  int sum, wrapped, least, most, lock;
  unsigned total, low, high, swapped;
  unsigned long long wide, wide_swapped;
  float real;
};

__global__ void atomics_kernel(Counters* counters) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&counters->sum, -i);
  atomicAdd(&counters->wrapped, 1 << 26);
  atomicMin(&counters->least, -i);
  atomicMax(&counters->most, i);
  if (atomicCAS(&counters->lock, 0, 1) == 0) atomicAdd(&counters->total, 1000u);
  atomicAdd(&counters->total, 2u);
  atomicMin(&counters->low, 7u + i);
  atomicMax(&counters->high, 0x80000000u + i);
  atomicCAS(&counters->swapped, static_cast<unsigned>(i), i + 1u);
  atomicAdd(&counters->wide, 1ull << 40);
  atomicCAS(&counters->wide_swapped, 0ull, 1ull << 50);
  atomicAdd(&counters->real, 0.5f);
}

void atomics() {
  Counters counters{};
  counters.low = kAll;
  start(launch(atomics_kernel, dim3(2), dim3(48), 0, nullptr, &counters));
  expect("atomicAdd int", counters.sum, -95 * 96 / 2);
  expect("atomicAdd wraps", counters.wrapped, INT32_MIN);
  expect("atomicMin int", counters.least, -95);
  expect("atomicMax int", counters.most, 95);
  expect("atomicCAS int, atomicAdd unsigned", counters.total, 1000u + 2 * 96);
  expect("atomicMin unsigned", counters.low, 7u);
  expect("atomicMax unsigned", counters.high, 0x80000000u + 95);
  expect("atomicCAS unsigned", counters.swapped > 0, true);
  expect("atomicAdd unsigned long long", counters.wide, 96ull << 40);
  expect("atomicCAS unsigned long long", counters.wide_swapped, 1ull << 50);
  expect("atomicAdd float", counters.real, 48.0f);
}

// Each thread reads the value that its neighbour wrote. The fault: no barrier (of the block or of the warp) before the
// read.
__global__ void barrier_kernel(const int* in, int* out, bool faulty) {
  __shared__ int shared[128];
  const unsigned i = threadIdx.x;
  shared[i] = in[blockIdx.x * 128 + i];
  if (!faulty) __syncthreads();
  out[blockIdx.x * 128 + i] = shared[(i + 32) % 128];
}

__global__ void warp_barrier_kernel(const int* in, int* out, bool faulty) {
  int* const shared = reinterpret_cast<int*>(cuda::dynamic_shared());
  const unsigned i = threadIdx.x;
  shared[i] = in[blockIdx.x * 128 + i];
  if (!faulty) __syncwarp();
  out[blockIdx.x * 128 + i] = shared[i / 32 * 32 + (i + 1) % 32];
}

// The fault: no barrier between the read of one round and the write of the next.
__global__ void reuse_kernel(const int* in, int* out, bool faulty) {
  __shared__ int shared[128];
  const unsigned i = threadIdx.x;
  for (int round = 0; round < 2; ++round) {
    shared[i] = in[blockIdx.x * 128 + i] + round;
    __syncthreads();
    if (round == 0) out[blockIdx.x * 128 + i] = shared[(i + 32) % 128];
    if (!faulty) __syncthreads();
  }
}

void barriers(void (*kernel)(const int*, int*, bool), int distance, int within, bool faulty) {
  std::vector<int> in(256);
  std::vector<int> out(256);
  for (int i = 0; i < 256; ++i) in[i] = 1000 + i;
  start(launch(kernel, dim3(2), dim3(128), 128 * sizeof(int), nullptr, in.data(), out.data(), faulty));
  for (int i = 0; i < 256; ++i) expect("neighbour", out[i], 1000 + i / within * within + (i + distance) % within);
}

// out[0 .. n) = 1. The fault: one more thread writes.
enum class Memory { kGlobal, kStaticShared, kDynamicShared };

template <Memory memory>
__global__ void overrun_kernel(int* out, int n, bool faulty) {
  __shared__ int shared[60];
  int* target = out;
  if (memory == Memory::kStaticShared) target = shared;
  if (memory == Memory::kDynamicShared) target = reinterpret_cast<int*>(cuda::dynamic_shared());
  const int i = static_cast<int>(threadIdx.x);
  if (i < n || (faulty && i == n)) target[i] = 1;
  __syncthreads();
  if (i < n) out[i] = target[i];
}

template <Memory memory>
void overrun(bool faulty) {
  constexpr int kCount = 60;
  std::vector<int> out(kCount);
  start(launch(overrun_kernel<memory>, dim3(1), dim3(64), kCount * sizeof(int), nullptr, out.data(), kCount, faulty));
  for (int value : out) expect("written", value, 1);
}

// The fault: the warps wait at different barriers.
__global__ void divergent_barrier_kernel(int* out, bool faulty) {
  if (faulty && threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

// The fault: the lanes of one warp wait at different places; one waits at the barrier of the block.
__global__ void divergent_shuffle_kernel(int* out, bool faulty) {
  int value = 1;
  if (faulty && threadIdx.x == 33) {
    __syncthreads();
  } else {
    value = __shfl_xor_sync(kAll, value, 1);
    __syncthreads();
  }
  out[threadIdx.x] = value;
}

// The fault: lanes that the mask contains have exited.
__global__ void exited_lane_kernel(int* out, bool faulty) {
  out[threadIdx.x] = 1;
  if (threadIdx.x >= 40) return;
  const unsigned mask = threadIdx.x < 32 || faulty ? kAll : 0xffu;
  out[threadIdx.x] = __shfl_sync(mask, 1, 0);
}

// The fault: a lane that the mask does not contain takes part.
__global__ void wrong_mask_kernel(int* out, bool faulty) {
  out[threadIdx.x] = 1;
  if (threadIdx.x % 32 < (faulty ? 17 : 16)) out[threadIdx.x] = __all_sync(0xffffu, true);
}

// The fault: a row that is not aligned to 16 bytes.
__global__ void misaligned_kernel(int* out, bool faulty) {
  __shared__ __align__(16) unsigned char rows[33 * 16];
  for (unsigned i = threadIdx.x; i < sizeof(rows); i += blockDim.x) rows[i] = 1;
  __syncthreads();
  uint32_t fragment[4];
  cuda::ldmatrix_x4(fragment, &rows[threadIdx.x % 32 * 16 + (faulty ? 8 : 0)]);
  out[threadIdx.x] = fragment[3] == 0x01010101u;
}

// The fault: a row in global memory instead of shared memory.
__global__ void not_shared_kernel(int* out, bool faulty) {
  int4* const shared = reinterpret_cast<int4*>(cuda::dynamic_shared());
  cuda::cp_async_16(faulty ? reinterpret_cast<int4*>(out) : &shared[threadIdx.x], out, true);
  cuda::cp_async_commit();
  cuda::cp_async_wait<0>();
  out[threadIdx.x] = 1;
}

__global__ void trap_kernel(int* out, bool faulty) {
  if (faulty && threadIdx.x == 5) __trap();
  out[threadIdx.x] = 1;
}

void ones(void (*kernel)(int*, bool), bool faulty) {
  std::vector<int> out(64);
  start(launch(kernel, dim3(1), dim3(64), 64 * sizeof(int4), nullptr, out.data(), faulty));
  for (int value : out) expect("one", value, 1);
}

// Shared memory is filled with ones at the start of every block, whatever the previous block wrote.
__global__ void poison_kernel(unsigned* out) {
  __shared__ unsigned in_plain_function[7];
  unsigned* const dynamic = reinterpret_cast<unsigned*>(cuda::dynamic_shared());
  unsigned all = kAll;
  for (int i = 0; i < 7; ++i) all &= in_plain_function[i] & dynamic[i];
  out[blockIdx.x] = all;
  for (int i = 0; i < 7; ++i) in_plain_function[i] = dynamic[i] = 0;
}

template <typename T>
__global__ void template_poison_kernel(unsigned* out) {
  __shared__ T in_template[3];
  out[blockIdx.x] = __float_as_uint(in_template[2]);
  in_template[2] = 0;
}

void poison() {
  for (const bool in_template : {false, true}) {
    std::vector<unsigned> out(3);
    start(launch(in_template ? template_poison_kernel<float> : poison_kernel, dim3(3), dim3(1), 7 * sizeof(unsigned),
                 nullptr, out.data()));
    for (unsigned word : out) expect("poison", word, kAll);
  }
}

__global__ void order_kernel(unsigned* next, unsigned* order) {
  order[atomicAdd(next, 1u)] = ((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * 64 +
                               (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
}

// Prints the order in which the threads ran. Each must have run once.
void order() {
  unsigned next = 0;
  std::vector<unsigned> order(12 * 64);
  start(launch(order_kernel, dim3(3, 2, 2), dim3(4, 4, 4), 0, nullptr, &next, order.data()));
  std::vector<bool> seen(order.size());
  for (unsigned i : order) {
    expect("thread seen", static_cast<bool>(seen.at(i)), false);
    seen.at(i) = true;
    printf("%u ", i);
  }
  printf("\n");
  fflush(stdout);
}

void built_ins() {
  expect("__popc", __popc(0xf0f0u), 8);
  expect("__popcll", __popcll(0xf0f00000000ull), 8);
  expect("__ffs", __ffs(0x50), 5);
  expect("__ffs of 0", __ffs(0), 0);
  expect("__clz", __clz(0x0000ffff), 16);
  expect("__clz of 0", __clz(0), 32);
  expect("__umulhi", __umulhi(0xffffffffu, 0xffffffffu), 0xfffffffeu);
  expect("__uint_as_float", __uint_as_float(__float_as_uint(-1.5f)), -1.5f);
  expect("__int_as_float", __int_as_float(__float_as_int(-1.5f)), -1.5f);
  expect("__fmaf_rn", __fmaf_rn(1.0f + 0x1p-12f, 1.0f + 0x1p-12f, -1.0f), 0x1p-11f + 0x1p-24f);
  expect("exp2f", exp2f(-3.0f), 0.125f);
  expect("rsqrtf", rsqrtf(16.0f), 0.25f);
  expect("__fdividef", __fdividef(1.0f, 4.0f), 0.25f);
  expect("__expf", __expf(0.0f), 1.0f);
  expect("__logf", __logf(1.0f), 0.0f);
  expect("min of a NaN", min(NAN, 2.0f), 2.0f);
  expect("max of a NaN", max(2.0f, NAN), 2.0f);
  expect("min of integers", min(-3, 2), -3);
  expect("max of mixed signs", max(-3, 2u), 0xfffffffdu);
  expect("max of wide integers", max(int64_t{1} << 40, int64_t{3}), int64_t{1} << 40);
  const int four = 4;
  expect("__ldg", __ldg(&four), 4);
  expect("alignment of float4", alignof(float4) + alignof(uint2), size_t{24});
}

__global__ void empty_kernel() {}

void expect_refusal(const char* reason, dim3 grid, dim3 block, size_t shared_bytes) {
  const Status status = launch(empty_kernel, grid, block, shared_bytes, nullptr);
  const std::string actual = status == nullptr ? "started" : status;
  if (actual == reason) return;
  ++failures;
  fprintf(stderr, "launch: %s, expected %s\n", actual.c_str(), reason);
}

void limits() {
  const char* const bad = "invalid configuration argument";
  expect_refusal("started", 1, 1024, 227 * 1024);
  expect_refusal("started", dim3(1, 65535), 1, 0);
  expect_refusal("invalid argument", 1, 1024, 227 * 1024 + 1);
  expect_refusal(bad, 1, 1025, 0);
  expect_refusal(bad, 1, dim3(32, 33), 0);
  expect_refusal(bad, 1, dim3(1, 1, 65), 0);
  expect_refusal(bad, 1, 0, 0);
  expect_refusal(bad, 0, 1, 0);
  expect_refusal(bad, 0x80000000u, 1, 0);
  expect_refusal(bad, dim3(1, 65536), 1, 0);
  expect_refusal(bad, dim3(1, 1, 65536), 1, 0);
  expect_refusal(bad, dim3(1, 0), 1, 0);
}

}  // namespace ppa::selftest

// Runs one case; returns the number of wrong results, or -1 if the case does not exist.
extern "C" int selftest(const char* case_name, bool faulty) {
  using namespace ppa::selftest;
  failures = 0;
  const std::string name = case_name;
  if (name == "sums") {
    sums<int>();
    sums<unsigned>();
    sums<long long>();
    sums<unsigned long long>();
    sums<float>();
  } else if (name == "exchange") {
    exchange();
  } else if (name == "products") {
    product<ppa::bfloat16, false>();
    product<ppa::bfloat16, true>();
    product<ppa::float16, false>();
    product<ppa::float16, true>();
  } else if (name == "copies") {
    copies(faulty);
  } else if (name == "in_flight") {
    in_flight();
  } else if (name == "atomics") {
    atomics();
  } else if (name == "barrier") {
    barriers(barrier_kernel, 32, 128, faulty);
  } else if (name == "warp_barrier") {
    barriers(warp_barrier_kernel, 1, 32, faulty);
  } else if (name == "reuse") {
    barriers(reuse_kernel, 32, 128, faulty);
  } else if (name == "overrun_global") {
    overrun<Memory::kGlobal>(faulty);
  } else if (name == "overrun_static_shared") {
    overrun<Memory::kStaticShared>(faulty);
  } else if (name == "overrun_dynamic_shared") {
    overrun<Memory::kDynamicShared>(faulty);
  } else if (name == "divergent_barrier") {
    ones(divergent_barrier_kernel, faulty);
  } else if (name == "divergent_shuffle") {
    ones(divergent_shuffle_kernel, faulty);
  } else if (name == "exited_lane") {
    ones(exited_lane_kernel, faulty);
  } else if (name == "wrong_mask") {
    ones(wrong_mask_kernel, faulty);
  } else if (name == "misaligned") {
    ones(misaligned_kernel, faulty);
  } else if (name == "not_shared") {
    ones(not_shared_kernel, faulty);
  } else if (name == "trap") {
    ones(trap_kernel, faulty);
  } else if (name == "poison") {
    poison();
  } else if (name == "order") {
    order();
  } else if (name == "built_ins") {
    built_ins();
  } else if (name == "limits") {
    limits();
  } else {
    return -1;
  }
  return failures;
}
