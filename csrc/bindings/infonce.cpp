#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "bindings/backend.h"
#include "ppa/ring.h"

namespace ppa::bindings {

namespace {

constexpr int64_t kMaxDim = 4096;

// The kernels load 16 bytes at a time.
void expect_aligned(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0, name,
                  ": expected an address that is a multiple of 16 bytes");
}

void expect_state(const Tensor& state) { expect(state, "state", {ScalarType::Long}, {3}); }

Ring ring_of(const Tensor& ring, const Tensor& ring_groups, const Tensor& state) {
  expect(ring, "ring", {ScalarType::Float, ScalarType::BFloat16, ScalarType::Half}, {-1, -1});
  STD_TORCH_CHECK(ring.size(0) > 0, "ring: found shape ", shape_of(ring), ", expected at least one row");
  expect(ring_groups, "ring_groups", {ScalarType::Long}, {ring.size(0)});
  expect_same_device(ring_groups, "ring_groups", ring, "ring");
  expect_state(state);
  expect_same_device(state, "state", ring, "ring");
  return {data<void>(ring), data<int64_t>(ring_groups), data<RingState>(state), dtype_of(ring), ring.size(0),
          ring.size(1)};
}

// out <- a b in fp32, by torch's own matrix product on every backend.
void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  using torch::stable::detail::from;
  if (a.scalar_type() == ScalarType::Float) {
    std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);
  } else {
    std::array<StableIValue, 4> stack{from(a), from(b), from(ScalarType::Float), from(out)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);
  }
}

// Converts an operand of `multiply`: on the CPU, torch has no product of 16-bit types into fp32.
Tensor operand(const Tensor& tensor) {
#ifdef PPA_BACKEND_CPU
  return tensor.scalar_type() == ScalarType::Float ? tensor : torch::stable::to(tensor, ScalarType::Float);
#else
  return tensor;
#endif
}

// Returns the rows or columns first .. first + n - 1.
Tensor part(Tensor tensor, int64_t dimension, int64_t first, int64_t n) {
  return torch::stable::narrow(tensor, dimension, first, n);
}

struct Span {
  int64_t first, rows;
};

// The ring rows that are split into chunks. On the CPU the state can be read: the live rows are one span, or two if
// they wrap around. On a GPU reading the state would synchronize, so the span is the complete ring. All its rows are
// finite (`enqueue` guarantees it), so a weight of 0 is enough to exclude a row.
std::vector<Span> spans(const Ring& ring) {
#ifdef PPA_BACKEND_CPU
  const RingState state = ring_checked(*ring.state, ring.rows);
  const int64_t first = ring_first(state.cursor, state.count, ring.rows);
  const int64_t before_wrap = std::min(state.count, ring.rows - first);
  if (before_wrap == state.count) return {{first, state.count}};
  return {{first, before_wrap}, {0, state.count - before_wrap}};
#else
  return {{0, ring.rows}};
#endif
}

// A view of the weights in the memory of the dot products, which must outlive it. Row i starts where its dot products
// start.
Tensor weights_in(const Tensor& dots, DType type, const Tensor& ring) {
  if (type == DType::kFloat32) return dots;
  const int64_t stride = dots.size(1) * static_cast<int64_t>(sizeof(float) / 2);
  return torch::stable::from_blob(dots.data_ptr(), {dots.size(0), dots.size(1)}, {stride, 1}, dots.device(),
                                  ring.scalar_type());
}

// Processes the ring in chunks: one product computes the dot products, a second one the weighted sums of the rows.
void infonce_chunks(const Launch& launch, const InfoNceArgs& args, const InfoNcePlan& plan, const Tensor& query,
                    const Tensor& ring, const Tensor& weighted) {
  const Tensor dots = empty(query, {args.n, plan.columns}, ScalarType::Float);
  const Tensor weights = weights_in(dots, plan.weights_type, ring);
  const Tensor queries = operand(query), sums = torch::stable::select(weighted, 0, 1);
  InfoNceChunk chunk{data<float>(dots), plan.columns, 0, 0, true};
  for (const Span& span : spans(args.ring)) {
    for (int64_t done = 0; done < span.rows || chunk.first; done += plan.columns, chunk.first = false) {
      chunk.first_row = span.first + done;
      chunk.rows = std::min(plan.columns, span.rows - done);
      const Tensor rows = operand(part(ring, 0, chunk.first_row, chunk.rows));
      multiply(queries, torch::stable::transpose(rows, 0, 1), part(dots, 1, 0, chunk.rows));
      Launch::check(backend::infonce_chunk(launch.context(), args, chunk), "infonce");
      multiply(part(weights, 1, 0, chunk.rows), rows, sums);
    }
  }
}

}  // namespace

// enqueue(Tensor keys, Tensor groups, Tensor step_indices, Tensor(a!) ring, Tensor(b!) ring_groups, Tensor(c!) state)
//   -> ()
void enqueue(Tensor keys, Tensor groups, Tensor step_indices, Tensor ring, Tensor ring_groups, Tensor state) {
  const Ring to = ring_of(ring, ring_groups, state);
  expect(keys, "keys", {ScalarType::Float, ring.scalar_type()}, {-1, to.dim});
  expect_same_device(keys, "keys", ring, "ring");
  const int64_t n = keys.size(0);
  expect(groups, "groups", {ScalarType::Long}, {n});
  expect_same_device(groups, "groups", ring, "ring");
  expect(step_indices, "step_indices", {ScalarType::Long}, {n});
  expect_same_device(step_indices, "step_indices", ring, "ring");
  if (n == 0) return;
  const Launch launch(ring);
  const EnqueueArgs args{to, data<void>(keys), dtype_of(keys), data<int64_t>(groups), data<int64_t>(step_indices), n};
  Launch::check(backend::enqueue(launch.context(), args), "enqueue");
}

// commit(Tensor(a!) state, int written, int size, int rows) -> ()
void commit(Tensor state, int64_t written, int64_t size, int64_t rows) {
  expect_state(state);
  STD_TORCH_CHECK(size >= 1, "size: found ", size, ", expected at least 1");
  STD_TORCH_CHECK(rows >= size, "rows: found ", rows, ", expected at least size, ", size);
  STD_TORCH_CHECK(written >= 0 && written <= rows, "written: found ", written, ", expected 0 to rows, ", rows);
  const Launch launch(state);
  Launch::check(backend::commit(launch.context(), data<RingState>(state), written, size, rows), "commit");
}

// infonce(Tensor query, Tensor positive, Tensor groups, Tensor(a!) ring, Tensor(b!) ring_groups, Tensor(c!) state,
//         Tensor? step_indices, float temperature) -> (Tensor loss, Tensor top1, Tensor dq)
std::tuple<Tensor, Tensor, Tensor> infonce(Tensor query, Tensor positive, Tensor groups, Tensor ring,
                                           Tensor ring_groups, Tensor state, std::optional<Tensor> step_indices,
                                           double temperature) {
  InfoNceArgs args{};
  args.ring = ring_of(ring, ring_groups, state);
  const int64_t dim = args.ring.dim;
  STD_TORCH_CHECK(dim % 8 == 0 && dim > 0 && dim <= kMaxDim, "ring: found ", dim,
                  " columns, expected a multiple of 8 up to ", kMaxDim);
  expect(query, "query", {ring.scalar_type()}, {-1, dim});
  const int64_t n = args.n = query.size(0);
  STD_TORCH_CHECK(n > 0, "query: found shape ", shape_of(query), ", expected at least one row");
  STD_TORCH_CHECK(temperature > 0, "temperature: found ", temperature, ", expected more than 0");
  expect(positive, "positive", {ring.scalar_type()}, {n, dim});
  expect(groups, "groups", {ScalarType::Long}, {n});
  expect_same_device(query, "query", ring, "ring");
  expect_same_device(positive, "positive", ring, "ring");
  expect_same_device(groups, "groups", ring, "ring");
  if (step_indices) {
    expect(*step_indices, "step_indices", {ScalarType::Long}, {n});
    expect_same_device(*step_indices, "step_indices", ring, "ring");
    args.step_indices = data<int64_t>(*step_indices);
  }
  expect_aligned(ring, "ring");
  expect_aligned(query, "query");
  expect_aligned(positive, "positive");
  args.query = data<void>(query);
  args.positive = data<void>(positive);
  args.groups = data<int64_t>(groups);
  args.scale = static_cast<float>(1.4426950408889634 / temperature);
  args.inverse_temperature = static_cast<float>(1 / temperature);

  const Launch launch(ring);
  const Tensor loss = empty(query, {n}, ScalarType::Float), top1 = empty(query, {n}, ScalarType::Bool);
  const Tensor dq = empty(query, {n, dim}, ScalarType::Float);
  args.loss = data<float>(loss);
  args.top1 = data<bool>(top1);
  args.dq = data<float>(dq);

  const InfoNcePlan plan = backend::infonce_plan(launch.context(), args.ring.type, n, dim, args.ring.rows);
  const Tensor max = empty(query, {plan.parts, n}, ScalarType::Float),
               sum = empty(max, {plan.parts, n}, ScalarType::Float);
  const Tensor weighted = empty(query, {plan.parts, n, dim}, ScalarType::Float);
  args.parts = plan.parts;
  args.max = data<float>(max);
  args.sum = data<float>(sum);
  args.weighted = data<float>(weighted);
  if (plan.columns > 0) {
    infonce_chunks(launch, args, plan, query, ring, weighted);
  } else {
#ifndef PPA_BACKEND_CPU
    Launch::check(backend::infonce_parts(launch.context(), args), "infonce");
#endif
  }
  Launch::check(backend::infonce_finish(launch.context(), args), "infonce");
  return {loss, top1, dq};
}

PPA_LIBRARY(m) {
  m.impl("enqueue", TORCH_BOX(&enqueue));
  m.impl("commit", TORCH_BOX(&commit));
  m.impl("infonce", TORCH_BOX(&infonce));
}

}  // namespace ppa::bindings
