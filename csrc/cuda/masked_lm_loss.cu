// The softmax cross-entropy of rows of logits. The gradient overwrites the logits: one read and one write of each.
//
// Lower bound on an H200 at 4.3 TB/s: 4 bytes per 16-bit logit, 0.455 ms for 4,096 rows of 119,547 (14.7 us per row and
// multiprocessor). Other possible limits:
//   L2 bandwidth (5.5 TB/s or more): a row crosses L2 when it is read, when it is read again for the gradient and when
//     it is written, and the bias twice: 5 x 239 KB, 0.89 ms. Therefore a block processes many rows on one
//     multiprocessor, and keeps the bias in shared memory (229 of its 239 KB) and the first 98 KB of the row in
//     registers. 639 KB are left, 0.48 ms.
//   L2 capacity (50 MB): each multiprocessor processes one row at a time, 32 MB in total, so that the second read finds
//     the rest of the row in L2. It reads backwards, so that longer rows (250,002: 66 MB) find at least their last part
//     there.
//   Latency: 98 KB of a row are requested at once, then 33 to 66 KB are in flight (4.3 TB/s for 1 us: 33 KB each).
//   Instructions: 14 per logit, 7.5 us per row. Exponentials: two per logit and one per 16 logits; at 16 per clock they
//     take 8.7 us.
// Predicted, not yet measured: 0.53 ms, 85 % of the speed of a copy.

#include "cuda/device.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "ppa/operations.h"
#include "ppa/softmax.h"

namespace ppa::cuda {

namespace {

constexpr int kSoftmaxThreads = 512;  // one block per multiprocessor: 128 registers per thread
constexpr int kSoftmaxWarps = kSoftmaxThreads / 32;
constexpr int kSoftmaxBatch = 4;  // vectors of 16 bytes that a thread loads together, 512 vectors apart
constexpr int kSoftmaxGroup = 2;  // of them, vectors that share an update of the running maximum
constexpr int kSoftmaxKept = 3;   // batches of a row that are kept in registers
constexpr int kSoftmaxStride = kSoftmaxBatch * kSoftmaxThreads;

template <typename T>
constexpr int kSoftmaxWidth = 16 / sizeof(T);

template <typename T>
constexpr uint32_t kMinusInfinity = 0xff800000u;
template <>
constexpr uint32_t kMinusInfinity<bfloat16> = 0xff80ff80u;
template <>
constexpr uint32_t kMinusInfinity<float16> = 0xfc00fc00u;

template <int vectors>
struct Vectors {
  uint4 vector[vectors];
};

template <typename T, int width>
PPA_INLINE void unpack(uint32_t word, int at, float (&x)[width]) {
  if constexpr (sizeof(T) == 4) {
    x[at] = bits_float(word);
  } else {
    x[2 * at] = to_float(T{static_cast<uint16_t>(word)});
    x[2 * at + 1] = to_float(T{static_cast<uint16_t>(word >> 16)});
  }
}

template <typename T, int width>
PPA_INLINE uint32_t pack(const float (&x)[width], int at) {
  if constexpr (sizeof(T) == 4) {
    return float_bits(x[at]);
  } else {
    return pack2<T>(x[2 * at], x[2 * at + 1]);
  }
}

template <typename T, int width>
PPA_INLINE void unpack(uint4 vector, float (&x)[width]) {
  unpack<T>(vector.x, 0, x);
  unpack<T>(vector.y, 1, x);
  unpack<T>(vector.z, 2, x);
  unpack<T>(vector.w, 3, x);
}

template <typename T, int width>
PPA_INLINE uint4 pack(const float (&x)[width]) {
  return make_uint4(pack<T>(x, 0), pack<T>(x, 1), pack<T>(x, 2), pack<T>(x, 3));
}

// The first `left` elements of a vector, followed by elements of `fill`.
template <typename T>
PPA_INLINE uint4 first_of(uint4 vector, int left, uint32_t fill) {
  constexpr int kInWord = 4 / sizeof(T);
  const auto word = [&](uint32_t bits, int at) {
    const int here = left - at * kInWord;
    return here >= kInWord ? bits : here <= 0 ? fill : (bits & 0xffffu) | (fill & 0xffff0000u);
  };
  return make_uint4(word(vector.x, 0), word(vector.y, 1), word(vector.z, 2), word(vector.w, 3));
}

// One thread's view of a row. Batch b of the block starts at vector b * kSoftmaxStride. For all threads of the block it
// is the same whether all columns of a batch exist, and where the bias of the batch is stored.
template <typename T>
struct SoftmaxRow {
  static constexpr int kWidth = kSoftmaxWidth<T>;

  uint4* logits;
  const uint4* bias;
  const uint4* shared_bias;
  int shared_batches;  // batches of the bias that are in shared memory
  int vocab_size, stride_vectors;

  PPA_INLINE int at(int batch, int i) const {
    return batch * kSoftmaxStride + i * kSoftmaxThreads + static_cast<int>(threadIdx.x);
  }

  PPA_INLINE bool whole(int batch) const { return (batch + 1) * kSoftmaxStride * kWidth <= vocab_size; }

  // Loads `n` vectors of a batch, from the i-th on; `fill` replaces the values in columns from vocab_size on.
  template <int n>
  PPA_INLINE Vectors<n> load(const uint4* from, int batch, int i, uint32_t fill) const {
    Vectors<n> result;
    if (whole(batch)) {
#pragma unroll
      for (int v = 0; v < n; ++v) result.vector[v] = from[at(batch, i + v)];
    } else {
#pragma unroll
      for (int v = 0; v < n; ++v) {
        const int left = vocab_size - at(batch, i + v) * kWidth;
        result.vector[v] = first_of<T>(left > 0 ? from[at(batch, i + v)] : uint4{}, left, fill);
      }
    }
    return result;
  }

  PPA_INLINE Vectors<kSoftmaxBatch> load(int batch) const { return load<kSoftmaxBatch>(logits, batch, 0, 0); }

  PPA_INLINE void biased(const Vectors<kSoftmaxBatch>& values, int batch, int i,
                         float (&z)[kSoftmaxGroup][kWidth]) const {
    Vectors<kSoftmaxGroup> addend;
    if (batch < shared_batches) {
#pragma unroll
      for (int g = 0; g < kSoftmaxGroup; ++g) addend.vector[g] = shared_bias[at(batch, i + g)];
    } else {
      addend = load<kSoftmaxGroup>(bias, batch, i, kMinusInfinity<T>);
    }
#pragma unroll
    for (int g = 0; g < kSoftmaxGroup; ++g) {
      float b[kWidth];
      unpack<T>(addend.vector[g], b);
      unpack<T>(values.vector[i + g], z[g]);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) z[g][j] += b[j];
    }
  }

  // Adds the terms of a batch to the part.
  PPA_INLINE void add(RowSum& part, const Vectors<kSoftmaxBatch>& values, int batch) const {
#pragma unroll
    for (int i = 0; i < kSoftmaxBatch; i += kSoftmaxGroup) {
      float z[kSoftmaxGroup][kWidth];
      biased(values, batch, i, z);
      float top = z[0][0];
#pragma unroll
      for (int e = 1; e < kSoftmaxGroup * kWidth; ++e) top = fmaxf(top, z[e / kWidth][e % kWidth]);
      const float shift = part.shift_with(top);
      float sum = part.under(shift);
#pragma unroll
      for (int e = 0; e < kSoftmaxGroup * kWidth; ++e) sum += softmax_term(z[e / kWidth][e % kWidth], shift);
      part = {shift, sum};
    }
  }

  // Overwrites a batch with its softmax.
  PPA_INLINE void write(const Vectors<kSoftmaxBatch>& values, int batch, float shift, float inverse) const {
#pragma unroll
    for (int i = 0; i < kSoftmaxBatch; i += kSoftmaxGroup) {
      float z[kSoftmaxGroup][kWidth];
      biased(values, batch, i, z);
#pragma unroll
      for (int g = 0; g < kSoftmaxGroup; ++g) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) z[g][j] = softmax_term(z[g][j], shift) * inverse;
        const uint4 vector = pack<T>(z[g]);
        const int place = at(batch, i + g);
        if (whole(batch)) {
          logits[place] = vector;
        } else if (place < stride_vectors) {  // the padding is 0 even if the row is not finite
          logits[place] = first_of<T>(vector, vocab_size - place * kWidth, 0);
        }
      }
    }
  }
};

}  // namespace

template <typename T>
__global__ void __launch_bounds__(kSoftmaxThreads, 1) cross_entropy_kernel(CrossEntropyArgs args, int shared_batches) {
  constexpr int kWidth = kSoftmaxWidth<T>;
  __shared__ RowSum parts[2][kSoftmaxWarps];
  uint4* const shared_bias = reinterpret_cast<uint4*>(dynamic_shared());

  SoftmaxRow<T> row;
  row.bias = static_cast<const uint4*>(args.bias);
  row.shared_bias = shared_bias;
  row.shared_batches = shared_batches;
  row.vocab_size = static_cast<int>(args.vocab_size);
  row.stride_vectors = static_cast<int>(args.stride / kWidth);
  const int batches = (row.stride_vectors + kSoftmaxStride - 1) / kSoftmaxStride;

  for (int b = 0; b < shared_batches; ++b) {  // each thread copies what it will read
    const auto bias = row.template load<kSoftmaxBatch>(row.bias, b, 0, kMinusInfinity<T>);
#pragma unroll
    for (int i = 0; i < kSoftmaxBatch; ++i) shared_bias[row.at(b, i)] = bias.vector[i];
  }

  // The label of the block's next row is loaded while this row is written, so that no row waits for its label.
  const auto label_of = [&](int64_t r) { return r < args.rows ? args.labels[r] : 0; };

  int turn = 0;
  int64_t next_label = label_of(blockIdx.x);
  for (int64_t r = blockIdx.x; r < args.rows; r += gridDim.x) {
    T* const logits = static_cast<T*>(args.logits) + r * args.stride;
    row.logits = reinterpret_cast<uint4*>(logits);
    const int64_t label = next_label;
    if (label < 0 || label >= args.vocab_size) {
      next_label = label_of(r + gridDim.x);
      for (int at = row.at(0, 0); at < row.stride_vectors; at += kSoftmaxThreads) row.logits[at] = uint4{};
      if (threadIdx.x == 0) args.loss[r] = NAN;
      continue;
    }
    // The thread that writes the vector of the label also writes the loss and, afterwards, the gradient of the label.
    const bool owner = static_cast<unsigned>(label / kWidth % kSoftmaxThreads) == threadIdx.x;
    float label_logit = 0;
    if (owner) label_logit = to_float(logits[label]) + to_float(static_cast<const T*>(args.bias)[label]);

    RowSum part = RowSum::empty();
    Vectors<kSoftmaxBatch> kept[kSoftmaxKept];
#pragma unroll
    for (int b = 0; b < kSoftmaxKept; ++b) kept[b] = row.load(b);
    Vectors<kSoftmaxBatch> next = row.load(kSoftmaxKept);
#pragma unroll
    for (int b = 0; b < kSoftmaxKept; ++b) row.add(part, kept[b], b);
#pragma unroll 1
    for (int b = kSoftmaxKept; b < batches; ++b) {
      const Vectors<kSoftmaxBatch> values = next;
      next = row.load(b + 1 < batches ? b + 1 : b);  // after the last batch: the first one to be written
      row.add(part, values, b);
    }

    part = reduce_block(part, parts[turn], [](RowSum a, RowSum b) { return a.merged(b); });
    turn ^= 1;

    next_label = label_of(r + gridDim.x);
    const float inverse = 1.0f / part.sum;
#pragma unroll 1
    for (int b = batches - 1; b >= kSoftmaxKept; --b) {
      const Vectors<kSoftmaxBatch> values = next;
      if (b > kSoftmaxKept) next = row.load(b - 1);
      row.write(values, b, part.shift, inverse);
    }
#pragma unroll
    for (int b = 0; b < kSoftmaxKept; ++b) row.write(kept[b], b, part.shift, inverse);
    __syncwarp();  // keeps the order of the thread's own stores, which have different types
    if (owner) {
      args.loss[r] = part.cross_entropy(label_logit);
      logits[label] = from_float<T>(softmax_term(label_logit, part.shift) * inverse - 1.0f);
    }
  }
}

template <typename T>
Status launch_cross_entropy(const Context& context, const CrossEntropyArgs& args) {
  constexpr int kBatchBytes = kSoftmaxStride * 16;
  const int room = (context.shared_bytes - static_cast<int>(2 * kSoftmaxWarps * sizeof(RowSum))) / kBatchBytes;
  const int batches = static_cast<int>(ceil_div(args.vocab_size, kSoftmaxStride * kSoftmaxWidth<T>));
  const int shared_batches = batches < room ? batches : room;
  const int64_t blocks = args.rows < context.multiprocessors ? args.rows : context.multiprocessors;
  return launch(cross_entropy_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kSoftmaxThreads),
                static_cast<size_t>(shared_batches) * kBatchBytes, context.stream, args, shared_batches);
}

Status cross_entropy(const Context& context, const CrossEntropyArgs& args) {
  switch (args.type) {
    case DType::kBFloat16:
      return launch_cross_entropy<bfloat16>(context, args);
    case DType::kFloat16:
      return launch_cross_entropy<float16>(context, args);
    default:
      return launch_cross_entropy<float>(context, args);
  }
}

}  // namespace ppa::cuda
