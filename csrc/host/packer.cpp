// The host packer, the pybind11 module ppa_fast._packer. It splits the pairs of a global step into micro-batches with
// nearly equal numbers of tokens, computes the layout of each, and copies its rows from memory-mapped Arrow buffers
// into one buffer. ReferencePacker in ppa_fast/data/loading/packing.py is the specification in NumPy and PyTorch; both
// give the same bits.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "cpu/multiversion.h"
#include "ppa/assemble.h"

namespace ppa::host {

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// Minimum pairs per thread: 0.4 ms of work at 12 tokens per sentence, ten times the cost of starting a thread.
constexpr int64_t kGrain = 1024;

// Runs f(begin, end) over [0, n) on at most `threads` threads. f returns an error message, or an empty string. If
// several parts fail, the message of the first part is thrown, independent of the number of threads.
template <typename F>
void parallel(int64_t threads, int64_t n, const F& f) {
  const int64_t parts = std::max<int64_t>(1, std::min(threads, n / kGrain));
  std::vector<std::string> wrong(parts);
  {
    std::vector<std::jthread> pool;
    for (int64_t p = 1; p < parts; ++p) {
      pool.emplace_back([&, p] { wrong[p] = f(n * p / parts, n * (p + 1) / parts); });
    }
    wrong[0] = f(0, n / parts);
  }
  for (const std::string& message : wrong) {
    if (!message.empty()) throw std::invalid_argument(message);
  }
}

// The rows of a store are scattered in memory, so the tokens of a pair are prefetched this many pairs before they are
// copied.
constexpr int64_t kAhead = 4;

struct Sentence {
  const int32_t* ids;
  int32_t length;
};

// A sampled pair. `row`: its row in the dataset. `masked`: the number of its tokens that TLM selects.
struct Pair {
  int64_t row, id, epoch, group;
  Sentence a, b;
  int32_t query_length, masked;
};

// Prefetches the sentences of a pair.
void prefetch(const Pair& pair) {
  for (const Sentence& sentence : {pair.a, pair.b}) {
    for (int32_t i = 0; i < sentence.length; i += 16) __builtin_prefetch(sentence.ids + i);
  }
}

// The number of tokens that the encoders read for a pair: [CLS] a [SEP] b [SEP], [CLS] a [SEP] and [CLS] b [SEP].
int64_t tokens_read(const Pair& pair) { return 2 * (int64_t{pair.a.length} + pair.b.length) + 7; }

// The parameters of input shuffling and masking.
struct Draws {
  uint32_t seed;
  uint64_t select;  // T(mask probability)
  bool shuffling;
};

// Evaluates the input shuffling, and counts the masked tokens.
PPA_MULTIVERSION void draw(const Draws& draws, Pair* pairs, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    Pair& pair = pairs[i];
    const bool swap = draws.shuffling && coin(draws.seed, pair.epoch, pair.id) != 0;
    const int64_t query = swap ? pair.b.length : pair.a.length, key = swap ? pair.a.length : pair.b.length;
    pair.query_length = static_cast<int32_t>(query);
    pair.masked = static_cast<int32_t>(
        draws.select != 0 ? count_selected(draws.seed, draws.select, pair.epoch, pair.id, query, key) : 0);
  }
}

// Copies a sentence; returns whether all its ids are below the size of the vocabulary.
PPA_MULTIVERSION bool copy_ids(Sentence sentence, int32_t* to, uint32_t vocab_size) {
  bool good = true;
  for (int32_t i = 0; i < sentence.length; ++i) {
    to[i] = sentence.ids[i];
    good &= static_cast<uint32_t>(to[i]) < vocab_size;
  }
  return good;
}

// Returns the boundaries [parts + 1] of contiguous non-empty runs that minimize the largest sum. `sums` [n + 1] are the
// cumulative sums from 0. For a given limit, runs are filled from the left up to the limit. Bisection finds the
// smallest limit for which `parts` runs are enough.
std::vector<int64_t> boundaries(const std::vector<int64_t>& sums, int64_t parts) {
  const int64_t n = static_cast<int64_t>(sums.size()) - 1;
  const auto reach = [&](int64_t begin, int64_t largest) {
    return std::upper_bound(sums.begin() + begin, sums.end(), sums[begin] + largest) - sums.begin() - 1;
  };
  int64_t longest = 0;
  for (int64_t i = 0; i < n; ++i) longest = std::max(longest, sums[i + 1] - sums[i]);
  int64_t low = std::max(longest, (sums[n] + parts - 1) / parts), high = low + longest;  // always enough
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    int64_t end = 0;
    for (int64_t p = 0; p < parts && end < n; ++p) end = reach(end, middle);
    (end == n ? high : low) = end == n ? middle : middle + 1;
  }
  std::vector<int64_t> ends{0};
  for (int64_t p = 1; p <= parts; ++p) ends.push_back(std::min<int64_t>(reach(ends.back(), low), n - (parts - p)));
  return ends;
}

// Allocates the sections of a micro-batch's buffer one after another, each at a multiple of 16 bytes. A section beyond
// the end is nullptr; expect_end then raises an error.
class Sections {
 public:
  Sections(uint8_t* buffer, int64_t bytes) : buffer_(buffer), bytes_(bytes) {}

  template <typename T>
  T* take(int64_t count) {
    const int64_t begin = at_, end = begin + count * static_cast<int64_t>(sizeof(T));
    at_ = (end + 15) / 16 * 16;
    if (at_ > bytes_) return nullptr;
    std::fill(buffer_ + end, buffer_ + at_, uint8_t{0});
    return reinterpret_cast<T*>(buffer_ + begin);
  }

  void expect_end() const {
    if (at_ != bytes_) {
      throw std::invalid_argument("buffer: found " + std::to_string(bytes_) + " bytes, expected " +
                                  std::to_string(at_) + ", the micro-batch's size");
    }
  }

 private:
  uint8_t* buffer_;
  int64_t bytes_, at_ = 0;
};

// The concatenated rows of record batches. It holds views of their columns, and keeps them alive.
class Packer {
 public:
  // The columns of a record batch: values and offsets of side a, the same of side b, groups, pair ids (of all rows, or
  // only of the first row if the ids are consecutive), and the name in error messages.
  using Columns = std::tuple<Array<int32_t>, Array<int32_t>, Array<int32_t>, Array<int32_t>, Array<int64_t>,
                             Array<int64_t>, std::string>;

  Packer(std::vector<Columns> batches, int64_t longest_a, int64_t longest_b, int64_t vocab_size, uint32_t seed,
         double mask_probability, bool input_shuffling, int64_t threads)
      : draws{seed, threshold(mask_probability), input_shuffling},
        threads(threads),
        columns_(std::move(batches)),
        longest_a_(longest_a),
        longest_b_(longest_b),
        vocab_size_(static_cast<uint32_t>(vocab_size)) {
    for (const auto& [a, a_offsets, b, b_offsets, groups, ids, name] : columns_) {
      const int64_t rows = groups.size();
      if (a_offsets.size() != rows + 1 || b_offsets.size() != rows + 1 || (ids.size() != rows && ids.size() != 1)) {
        throw std::invalid_argument(name + ": columns of unequal length");
      }
      batches_.push_back({{a.data(), a.size(), a_offsets.data()},
                          {b.data(), b.size(), b_offsets.data()},
                          groups.data(),
                          ids.data(),
                          ids.size() == 1});
      starts_.push_back(starts_.back() + rows);
    }
  }

  void check_rows(const int64_t* rows, int64_t n) const {
    const auto [least, most] = std::minmax_element(rows, rows + n);
    if (n > 0 && (*least < 0 || *most >= starts_.back())) {
      throw std::out_of_range("rows: found " + std::to_string(*least) + " to " + std::to_string(*most) +
                              ", expected 0 to " + std::to_string(starts_.back() - 1));
    }
  }

  // Sets the pair id, the group and the sentences for a pair's row; returns an error message or an empty string.
  std::string find(Pair& pair) const {
    const int64_t number = batch_of(pair.row), inner = pair.row - starts_[number];
    const Batch& batch = batches_[number];
    pair.id = batch.counting ? batch.ids[0] + inner : batch.ids[inner];
    pair.group = batch.groups[inner];
    std::string wrong = find(batch.a, inner, longest_a_, pair, 'a', pair.a);
    return wrong.empty() ? find(batch.b, inner, longest_b_, pair, 'b', pair.b) : wrong;
  }

  // Copies a sentence; returns an error message if an id is invalid.
  std::string copy(const Sentence& sentence, const Pair& pair, char side, int32_t* to) const {
    if (copy_ids(sentence, to, vocab_size_)) return {};
    const auto outside = [&](int32_t id) { return static_cast<uint32_t>(id) >= vocab_size_; };
    const int32_t bad = *std::find_if(sentence.ids, sentence.ids + sentence.length, outside);
    return place(pair, side) + "token id " + std::to_string(bad) + ", expected 0 to " + std::to_string(vocab_size_ - 1);
  }

  const Draws draws;
  const int64_t threads;

 private:
  struct Column {
    const int32_t* values;
    int64_t size;
    const int32_t* offsets;
  };
  struct Batch {
    Column a, b;
    const int64_t *groups, *ids;
    bool counting;
  };

  int64_t batch_of(int64_t row) const {
    return std::upper_bound(starts_.begin(), starts_.end(), row) - starts_.begin() - 1;
  }

  std::string find(const Column& column, int64_t inner, int64_t longest, const Pair& pair, char side,
                   Sentence& found) const {
    const int64_t begin = column.offsets[inner], end = column.offsets[inner + 1];
    if (begin < 0 || end < begin || end > column.size || end - begin > longest) {
      return place(pair, side) + "found tokens " + std::to_string(begin) + " to " + std::to_string(end) + " of " +
             std::to_string(column.size) + ", expected at most " + std::to_string(longest) +
             " tokens; the file is damaged, run prepare again";
    }
    found = {column.values + begin, static_cast<int32_t>(end - begin)};
    return {};
  }

  std::string place(const Pair& pair, char side) const {
    constexpr int64_t kRow = (int64_t{1} << 40) - 1;  // the bits of a pair id that hold the row in its store
    return std::get<std::string>(columns_[batch_of(pair.row)]) + ": row " + std::to_string(pair.id & kRow) + ", side " +
           side + ": ";
  }

  std::vector<Columns> columns_;
  std::vector<Batch> batches_;
  std::vector<int64_t> starts_{0};  // [batches + 1] first rows
  int64_t longest_a_, longest_b_;
  uint32_t vocab_size_;
};

// The pairs of a global step, and their split into micro-batches.
class GlobalStep {
 public:
  GlobalStep(std::shared_ptr<const Packer> packer, const int64_t* rows, const int64_t* epochs, int64_t n, int64_t parts)
      : packer_(std::move(packer)), pairs_(n), order_(n) {
    packer_->check_rows(rows, n);
    parallel(packer_->threads, n, [&](int64_t begin, int64_t end) -> std::string {
      for (int64_t i = begin; i < end; ++i) {
        pairs_[i].row = rows[i];
        pairs_[i].epoch = epochs[i];
        if (std::string wrong = packer_->find(pairs_[i]); !wrong.empty()) return wrong;
      }
      draw(packer_->draws, pairs_.data() + begin, end - begin);
      return {};
    });
    std::iota(order_.begin(), order_.end(), int64_t{0});
    std::sort(order_.begin(), order_.end(), [&](int64_t p, int64_t q) {
      const int64_t p_tokens = tokens_read(pairs_[p]), q_tokens = tokens_read(pairs_[q]);
      return p_tokens != q_tokens ? p_tokens < q_tokens : p < q;
    });
    std::vector<int64_t> sums{0};
    for (const int64_t position : order_) sums.push_back(sums.back() + tokens_read(pairs_[position]));
    bounds_ = boundaries(sums, parts);
    for (int64_t p = 0; p < parts; ++p) {
      if (const int64_t tokens = sums[bounds_[p + 1]] - sums[bounds_[p]]; tokens > INT32_MAX) {
        throw std::invalid_argument("parts: found " + std::to_string(parts) + ", but one micro-batch has " +
                                    std::to_string(tokens) + " tokens, expected fewer than 2^31; use more parts");
      }
    }
  }

  int64_t masked() const {
    int64_t total = 0;
    for (const Pair& pair : pairs_) total += pair.masked;
    return total;
  }

  // The tokens of the sentences of all pairs, without special tokens.
  int64_t text_tokens() const {
    int64_t total = 0;
    for (const Pair& pair : pairs_) total += int64_t{pair.a.length} + pair.b.length;
    return total;
  }

  std::vector<int64_t> pairs() const {
    std::vector<int64_t> counts;
    for (size_t part = 1; part < bounds_.size(); ++part) counts.push_back(bounds_[part] - bounds_[part - 1]);
    return counts;
  }

  // The sizes of a micro-batch: pairs, tokens of the sides a and b, tokens of the queries, masked positions.
  std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> sizes(int64_t number) const {
    const auto [begin, end] = part(number);
    int64_t a = 0, b = 0, query = 0, masked = 0;
    for (int64_t i = begin; i < end; ++i) {
      const Pair& pair = pairs_[order_[i]];
      a += pair.a.length;
      b += pair.b.length;
      query += pair.query_length + 2;
      masked += pair.masked;
    }
    return {end - begin, a, b, query, masked};
  }

  // Writes the sections of a micro-batch, in the order of Sizes.sections in packing.py.
  void fill(int64_t number, uint8_t* buffer, int64_t bytes) const {
    const auto [n, a, b, query, masked] = sizes(number);
    const int64_t* const positions = order_.data() + part(number).first;
    Sections sections(buffer, bytes);
    int64_t* const pair_ids = sections.take<int64_t>(n);
    int64_t* const epochs = sections.take<int64_t>(n);
    int64_t* const groups = sections.take<int64_t>(n);
    int64_t* const places = sections.take<int64_t>(n);
    int32_t* const a_offsets = sections.take<int32_t>(n + 1);
    int32_t* const b_offsets = sections.take<int32_t>(n + 1);
    int32_t* const query_cu_seqlens = sections.take<int32_t>(n + 1);
    int32_t* const masked_offsets = sections.take<int32_t>(n + 1);
    int32_t* const a_tokens = sections.take<int32_t>(a);
    int32_t* const b_tokens = sections.take<int32_t>(b);
    sections.expect_end();
    a_offsets[0] = b_offsets[0] = query_cu_seqlens[0] = masked_offsets[0] = 0;
    for (int64_t i = 0; i < n; ++i) {
      const Pair& pair = pairs_[positions[i]];
      pair_ids[i] = pair.id;
      epochs[i] = pair.epoch;
      groups[i] = pair.group;
      places[i] = positions[i];
      a_offsets[i + 1] = a_offsets[i] + pair.a.length;
      b_offsets[i + 1] = b_offsets[i] + pair.b.length;
      query_cu_seqlens[i + 1] = query_cu_seqlens[i] + pair.query_length + 2;
      masked_offsets[i + 1] = masked_offsets[i] + pair.masked;
    }
    parallel(packer_->threads, n, [&](int64_t begin, int64_t end) -> std::string {
      for (int64_t i = begin; i < end; ++i) {
        if (i + kAhead < end) prefetch(pairs_[positions[i + kAhead]]);
        const Pair& pair = pairs_[positions[i]];
        std::string wrong = packer_->copy(pair.a, pair, 'a', a_tokens + a_offsets[i]);
        if (wrong.empty()) wrong = packer_->copy(pair.b, pair, 'b', b_tokens + b_offsets[i]);
        if (!wrong.empty()) return wrong;
      }
      return {};
    });
  }

 private:
  // The first index in the order of a micro-batch, and one past its last.
  std::pair<int64_t, int64_t> part(int64_t number) const { return {bounds_.at(number), bounds_.at(number + 1)}; }

  std::shared_ptr<const Packer> packer_;
  std::vector<Pair> pairs_;      // in the order of sampling
  std::vector<int64_t> order_;   // their indices, sorted by tokens
  std::vector<int64_t> bounds_;  // [parts + 1] boundaries in order_
};

std::shared_ptr<GlobalStep> make_step(std::shared_ptr<const Packer> packer, const Array<int64_t>& rows,
                                      const Array<int64_t>& epochs, int64_t parts) {
  if (rows.ndim() != 1 || epochs.ndim() != 1 || rows.size() != epochs.size()) {
    throw std::invalid_argument("epochs: found " + std::to_string(epochs.size()) + ", expected one for each of " +
                                std::to_string(rows.size()) + " rows");
  }
  if (parts < 1 || rows.size() < parts) {
    throw std::invalid_argument("parts: found " + std::to_string(parts) + " micro-batches for " +
                                std::to_string(rows.size()) + " pairs, expected 1 to " + std::to_string(rows.size()));
  }
  const py::gil_scoped_release release;
  return std::make_shared<GlobalStep>(std::move(packer), rows.data(), epochs.data(), rows.size(), parts);
}

void fill(const GlobalStep& step, int64_t number, Array<uint8_t> buffer) {
  uint8_t* const begin = buffer.mutable_data();
  const int64_t bytes = buffer.size();
  const py::gil_scoped_release release;
  step.fill(number, begin, bytes);
}

PYBIND11_MODULE(_packer, module) {
  py::class_<GlobalStep, std::shared_ptr<GlobalStep>>(module, "GlobalStep")
      .def_property_readonly("masked", &GlobalStep::masked)
      .def_property_readonly("text_tokens", &GlobalStep::text_tokens)
      .def_property_readonly("pairs", &GlobalStep::pairs)
      .def("sizes", &GlobalStep::sizes, py::arg("number"))
      .def("fill", &fill, py::arg("number"), py::arg("buffer").noconvert());
  py::class_<Packer, std::shared_ptr<Packer>>(module, "Packer")
      .def(py::init<std::vector<Packer::Columns>, int64_t, int64_t, int64_t, uint32_t, double, bool, int64_t>(),
           py::arg("batches").noconvert(), py::arg("longest_a"), py::arg("longest_b"), py::arg("vocab_size"),
           py::arg("seed"), py::arg("mask_probability"), py::arg("input_shuffling"), py::arg("threads"))
      .def("step", &make_step, py::arg("rows"), py::arg("epochs"), py::arg("parts"));
}

}  // namespace ppa::host
