#include "bindings/backend.h"

namespace ppa::bindings {

// assemble(Tensor a_tokens, Tensor a_offsets, Tensor b_tokens, Tensor b_offsets, Tensor pair_ids, Tensor epochs,
//          Tensor query_cu_seqlens, Tensor masked_offsets, SymInt query_tokens, SymInt masked, int seed, int cls, int
//          sep, int mask, int vocab_size, float mask_probability, bool input_shuffling)
//   -> Tensor: int32, one allocation that holds query_tokens, query_positions, key_tokens, key_cu_seqlens,
//      key_positions, tlm_tokens, tlm_cu_seqlens, tlm_positions, masked_positions, labels and is_swapped in this
//      order. Each starts at a multiple of 16 bytes; the padding between them is 0.
Tensor assemble(Tensor a_tokens, Tensor a_offsets, Tensor b_tokens, Tensor b_offsets, Tensor pair_ids, Tensor epochs,
                Tensor query_cu_seqlens, Tensor masked_offsets, int64_t query_tokens, int64_t masked, int64_t seed,
                int64_t cls, int64_t sep, int64_t mask, int64_t vocab_size, double mask_probability,
                bool input_shuffling) {
  using enum ScalarType;
  expect(pair_ids, "pair_ids", {Long}, {-1});
  const int64_t n = pair_ids.size(0);
  const auto same = [&](const Tensor& tensor, const char* name, ScalarType type, int64_t size) {
    expect(tensor, name, {type}, {size});
    expect_same_device(tensor, name, pair_ids, "pair_ids");
  };
  same(a_tokens, "a_tokens", Int, -1);
  same(a_offsets, "a_offsets", Int, n + 1);
  same(b_tokens, "b_tokens", Int, -1);
  same(b_offsets, "b_offsets", Int, n + 1);
  same(epochs, "epochs", Long, n);
  same(query_cu_seqlens, "query_cu_seqlens", Int, n + 1);
  same(masked_offsets, "masked_offsets", Int, n + 1);
  const int64_t a_count = a_tokens.size(0), b_count = b_tokens.size(0), ordinary = a_count + b_count;
  STD_TORCH_CHECK(ordinary + 4 * n <= INT32_MAX, "a_tokens: found ", ordinary, " tokens on both sides and ", n,
                  " pairs, expected at most 2^31 - 1 with 4 for each pair");
  STD_TORCH_CHECK(query_tokens >= 2 * n && query_tokens <= ordinary + 2 * n, "query_tokens: found ", query_tokens,
                  ", expected ", 2 * n, " to ", ordinary + 2 * n);
  STD_TORCH_CHECK(masked >= 0 && masked <= ordinary, "masked: found ", masked, ", expected 0 to ", ordinary);
  STD_TORCH_CHECK(vocab_size >= 1 && vocab_size <= int64_t{1} << 31, "vocab_size: found ", vocab_size,
                  ", expected 1 to 2^31");
  const auto id = [&](int64_t token, const char* name) {
    STD_TORCH_CHECK(token >= 0 && token < vocab_size, name, ": found ", token, ", expected an id below vocab_size, ",
                    vocab_size);
    return static_cast<int32_t>(token);
  };
  STD_TORCH_CHECK(mask_probability >= 0 && mask_probability <= 1, "mask_probability: found ", mask_probability,
                  ", expected 0 to 1");
  AssembleArgs args{};
  args.cls = id(cls, "cls");
  args.sep = id(sep, "sep");
  args.masking = {static_cast<uint32_t>(seed), threshold(mask_probability), static_cast<uint32_t>(vocab_size),
                  id(mask, "mask")};
  args.input_shuffling = input_shuffling;
  args.a_tokens = data<const int32_t>(a_tokens);
  args.a_offsets = data<const int32_t>(a_offsets);
  args.b_tokens = data<const int32_t>(b_tokens);
  args.b_offsets = data<const int32_t>(b_offsets);
  args.pair_ids = data<const int64_t>(pair_ids);
  args.epochs = data<const int64_t>(epochs);
  args.query_cu_seqlens = data<const int32_t>(query_cu_seqlens);
  args.masked_offsets = data<const int32_t>(masked_offsets);
  args.n = n;
  args.a_count = a_count;
  args.b_count = b_count;
  args.query_count = query_tokens;
  args.masked_count = masked;

  // Sets the output pointers for a buffer that starts at this address; returns its size in bytes.
  const auto place = [&](uintptr_t buffer) {
    uintptr_t end = buffer;
    const auto take = [&]<typename T>(T*& pointer, int64_t size) {
      pointer = reinterpret_cast<T*>(end);
      end += ceil_div(size * static_cast<int64_t>(sizeof(T)), kAssembleAlignment) * kAssembleAlignment;
    };
    take(args.query_tokens, args.query_count);
    take(args.query_positions, args.query_count);
    take(args.key_tokens, args.key_count());
    take(args.key_cu_seqlens, n + 1);
    take(args.key_positions, args.key_count());
    take(args.tlm_tokens, args.tlm_count());
    take(args.tlm_cu_seqlens, n + 1);
    take(args.tlm_positions, args.tlm_count());
    take(args.masked_rows, masked);
    take(args.labels, masked);
    take(args.swap, n);
    return static_cast<int64_t>(end - buffer);
  };
  const Tensor out = empty(pair_ids, {place(0) / static_cast<int64_t>(sizeof(int32_t))}, Int);
  place(reinterpret_cast<uintptr_t>(out.data_ptr()));
  const Launch launch(pair_ids);
  Launch::check(backend::assemble(launch.context(), args), "assemble");
  return out;
}

PPA_LIBRARY(m) { m.impl("assemble", TORCH_BOX(&assemble)); }

}  // namespace ppa::bindings
