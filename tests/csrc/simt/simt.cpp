// The scheduler of the SIMT harness: fibers, the order in which they run, their waits, and the warp-wide instructions.
#include "simt/simt.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

// Context switches take a few instructions on x86-64. Other platforms, and -DPPA_SIMT_UCONTEXT, use ucontext.
#ifndef __x86_64__
#define PPA_SIMT_UCONTEXT
#endif
#ifdef PPA_SIMT_UCONTEXT
#include <ucontext.h>
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

#ifndef PPA_SIMT_UCONTEXT
// Pushes the callee-saved registers onto this stack, stores the stack pointer, and returns on the other stack.
// swapcontext is slower, because it makes a system call for the signal mask each time.
extern "C" void ppa_simt_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.globl ppa_simt_switch
.hidden ppa_simt_switch
.type ppa_simt_switch, @function
ppa_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ppa_simt_switch, .-ppa_simt_switch
)");
#endif

namespace ppa::simt {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxShared = 227 * 1024;
constexpr size_t kGuardBytes = 4096;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackBytes = 256 * 1024;  // redzones make stack frames several times larger
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

// An execution context: that of the scheduler, or of a fiber.
class Context {
 public:
  Context() = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // Allocates a stack, on which `entry` starts at the first switch; `entry` must not return. The page below the stack
  // is inaccessible. Stacks start at different offsets in their pages; at equal offsets they would compete for the same
  // few sets of the processor's cache.
  void start(void (*entry)(), unsigned index) {
    void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) {
      perror("ppa simt: no memory for a thread's stack");
      abort();
    }
    bottom_ = static_cast<unsigned char*>(memory) + kGuardBytes;
    size_ = kStackBytes - index * 192 % 4096;
#ifndef PPA_SIMT_UCONTEXT
    // The stack has the form that ppa_simt_switch leaves: six registers and the return address. Above them is the
    // return address of `entry` itself, null, where debuggers stop.
    void** top = reinterpret_cast<void**>(static_cast<unsigned char*>(bottom_) + size_);
    top[-2] = reinterpret_cast<void*>(entry);
    pointer_ = top - 8;
#else
    getcontext(&state_);
    state_.uc_stack.ss_sp = bottom_;
    state_.uc_stack.ss_size = size_;
    makecontext(&state_, entry, 0);
#endif
  }

  // Switches from `from`, which is running, to `to`; returns when something switches back.
  static void change(Context& from, Context& to) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.size_);
#endif
#ifndef PPA_SIMT_UCONTEXT
    ppa_simt_switch(&from.pointer_, to.pointer_);
#else
    swapcontext(&from.state_, &to.state_);
#endif
    from.resumed(to);
  }

  // Must be called first on the new stack. `from` is the context that switched.
  void resumed([[maybe_unused]] Context& from) {
#ifdef __SANITIZE_ADDRESS__
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(fake_stack_, &bottom, &size);
    from.bottom_ = const_cast<void*>(bottom);  // the scheduler runs on the stack of the caller of launch
    from.size_ = size;
#endif
  }

 private:
  void* bottom_ = nullptr;
  size_t size_ = 0;
#ifndef PPA_SIMT_UCONTEXT
  void* pointer_ = nullptr;
#else
  ucontext_t state_;
#endif
#ifdef __SANITIZE_ADDRESS__
  void* fake_stack_ = nullptr;
#endif
};

enum class State { kReady, kAtWarpCollective, kAtBlockBarrier, kExited };

struct Wait {
  const char* name;
  Site where;
  unsigned mask;      // of a warp collective
  Complete complete;  // of a warp collective
  void* operand;      // of a warp collective
  bool predicate;     // of a block barrier

  bool meets(const Wait& other) const {
    return mask == other.mask && complete == other.complete && where.line() == other.where.line() &&
           where.column() == other.where.column() && strcmp(name, other.name) == 0 &&
           strcmp(where.file_name(), other.where.file_name()) == 0;
  }
};

struct Copy {
  void* to;
  const void* from;  // null: zeros
  size_t bytes;
  uint64_t group;
};

struct Fiber {
  Context context;
  uint3 thread;
  unsigned lane;
  State state;
  Wait wait;
  Arrivals arrivals;
  std::vector<Copy> copies;
  uint64_t group;  // the open group
};

// The order in which blocks, warps or lanes run.
class Order {
 public:
  // Returns false if `text` is not a valid order. Null means forward.
  bool parse(const char* text) {
    const std::string name = text == nullptr ? "forward" : text;
    shuffled_ = name.rfind("shuffle:", 0) == 0;
    reversed_ = name == "reverse";
    if (!shuffled_) return reversed_ || name == "forward";
    char* end;
    generator_.seed(strtoul(name.c_str() + 8, &end, 10));
    return name.size() > 8 && *end == 0;
  }

  // Fills `order` with 0 .. count-1; a shuffled order differs at every call.
  void arrange(std::vector<unsigned>& order, unsigned count) {
    if (order.size() != count) {
      order.resize(count);
      std::iota(order.begin(), order.end(), 0u);
      if (reversed_) std::reverse(order.begin(), order.end());
    }
    if (shuffled_) std::shuffle(order.begin(), order.end(), generator_);
  }

 private:
  bool shuffled_ = false;
  bool reversed_ = false;
  std::mt19937 generator_;
};

struct Scheduler {
  std::mutex mutex;
  Context main;
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept from launch to launch
  Fiber* current = nullptr;
  unsigned threads = 0;
  Order order;
  std::string kernel;
  void (*body)(void*) = nullptr;
  void* context = nullptr;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
};
Scheduler scheduler;

std::string text(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string text(Site where) { return std::string(where.file_name()) + ":" + std::to_string(where.line()); }

[[noreturn]] void die(const std::string& message) {
  fprintf(stderr, "ppa simt: kernel %s, block %s: %s\n", scheduler.kernel.c_str(), text(blockIdx).c_str(),
          message.c_str());
  abort();
}

// Reports where the threads of the block are, one line per place, and aborts.
[[noreturn]] void die_of_deadlock() {
  std::string message = "deadlock, some threads never reach what others wait for";
  std::vector<bool> told(scheduler.threads);
  for (unsigned i = 0; i < scheduler.threads; ++i) {
    if (told[i]) continue;
    const Fiber& first = *scheduler.fibers[i];
    unsigned others = 0;
    for (unsigned j = i + 1; j < scheduler.threads; ++j) {
      const Fiber& other = *scheduler.fibers[j];
      if (other.state != first.state || (first.state != State::kExited && !other.wait.meets(first.wait))) continue;
      told[j] = true;
      ++others;
    }
    message += "\n  thread " + text(first.thread) + (others > 0 ? " and " + std::to_string(others) + " more" : "");
    if (first.state == State::kExited) {
      message += ": exited";
    } else {
      message += ": at " + std::string(first.wait.name) + ", " + text(first.wait.where);
      if (first.state == State::kAtWarpCollective) {
        char mask[16];
        snprintf(mask, sizeof(mask), "0x%08x", first.wait.mask);
        message += std::string(", lanes ") + mask;
      }
    }
  }
  die(message);
}

void give_way(State state) {
  Fiber* fiber = scheduler.current;
  fiber->state = state;
  Context::change(fiber->context, scheduler.main);
}

// The main function of a fiber: runs one kernel thread after another, forever.
void fiber_main() {
  scheduler.current->context.resumed(scheduler.main);
  for (;;) {
    scheduler.body(scheduler.context);
    give_way(State::kExited);
  }
}

// Completes every collective whose lanes have all arrived; returns whether there was one. As on a GPU, lanes beyond the
// last thread of the block do not exist and are not waited for. A lane that has exited is waited for, and never
// arrives.
bool complete_collectives(unsigned first, unsigned lanes) {
  bool any = false;
  const unsigned existing = lanes == kWarp ? 0xffffffffu : (1u << lanes) - 1;
  for (unsigned i = 0; i < lanes; ++i) {
    const Fiber& leader = *scheduler.fibers[first + i];
    if (leader.state != State::kAtWarpCollective) continue;
    const unsigned members = leader.wait.mask & existing;
    void* operands[kWarp] = {};
    bool all = true;
    for (unsigned j = 0; j < lanes && all; ++j) {
      if (!(members >> j & 1)) continue;
      const Fiber& member = *scheduler.fibers[first + j];
      all = member.state == State::kAtWarpCollective && member.wait.meets(leader.wait);
      operands[j] = member.wait.operand;
    }
    if (!all) continue;
    leader.wait.complete(operands, members);
    for (unsigned j = 0; j < lanes; ++j) {
      if (members >> j & 1) scheduler.fibers[first + j]->state = State::kReady;
    }
    any = true;
  }
  return any;
}

// Runs a warp until each lane waits for the block, has exited, or cannot continue. Other warps do not run in between,
// so each warp gets as far ahead of the others as it could on a GPU.
void run_warp(unsigned first, std::vector<unsigned>& lane_order) {
  const unsigned lanes = std::min(kWarp, scheduler.threads - first);
  do {
    scheduler.order.arrange(lane_order, lanes);
    for (unsigned i : lane_order) {
      Fiber* fiber = scheduler.fibers[first + i].get();
      if (fiber->state != State::kReady) continue;
      scheduler.current = fiber;
      threadIdx = fiber->thread;
      Context::change(scheduler.main, fiber->context);
    }
  } while (complete_collectives(first, lanes));
}

// Opens the barrier at which all remaining threads wait; returns false if all threads have exited.
bool open_barrier() {
  const Fiber* first = nullptr;
  Arrivals arrivals{};
  for (unsigned i = 0; i < scheduler.threads; ++i) {
    const Fiber& fiber = *scheduler.fibers[i];
    if (fiber.state == State::kExited) continue;
    if (first == nullptr) first = &fiber;
    if (fiber.state != State::kAtBlockBarrier || !fiber.wait.meets(first->wait)) die_of_deadlock();
    ++arrivals.threads;
    arrivals.holding += fiber.wait.predicate;
  }
  for (unsigned i = 0; i < scheduler.threads; ++i) {
    Fiber& fiber = *scheduler.fibers[i];
    if (fiber.state == State::kExited) continue;
    fiber.arrivals = arrivals;
    fiber.state = State::kReady;
  }
  return first != nullptr;
}

std::string read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// Returns the addresses and sizes of the __shared__ variables of this library (or program). Only the full symbol table
// contains local variables. It is in the file but not in memory, so the file is read.
std::map<unsigned char*, size_t> find_static_shared() {
  Dl_info info;
  link_map* loaded;
  if (dladdr1(&scheduler, &info, reinterpret_cast<void**>(&loaded), RTLD_DL_LINKMAP) == 0) die("dladdr1 failed");
  const char* path = *loaded->l_name != 0 ? loaded->l_name : "/proc/self/exe";
  const std::string file = read_file(path);
  const auto at = [&file](size_t offset) { return file.data() + offset; };
  std::map<unsigned char*, size_t> found;
  bool stripped = true;
  if (file.size() >= sizeof(ElfW(Ehdr))) {
    const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(at(0));
    const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(at(header->e_shoff));
    for (int i = 0; i < header->e_shnum; ++i) {
      if (sections[i].sh_type != SHT_SYMTAB) continue;
      stripped = false;
      const char* names = at(sections[sections[i].sh_link].sh_offset);
      const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(at(sections[i].sh_offset));
      for (size_t j = 0; j < sections[i].sh_size / sizeof(*symbols); ++j) {
        if (strstr(names + symbols[j].st_name, "B10ppa_shared") == nullptr) continue;
        found[reinterpret_cast<unsigned char*>(loaded->l_addr + symbols[j].st_value)] = symbols[j].st_size;
      }
    }
  }
  if (stripped) die(std::string("no symbol table in ") + path);
  return found;
}

const std::map<unsigned char*, size_t>& static_shared() {
  static const std::map<unsigned char*, size_t> found = find_static_shared();
  return found;
}

void run_block() {
  // Allocated on the heap, so that AddressSanitizer guards the bytes after the end.
  scheduler.shared = static_cast<unsigned char*>(malloc(scheduler.shared_bytes));
  if (scheduler.shared_bytes > 0) memset(scheduler.shared, 0xff, scheduler.shared_bytes);
  for (const auto& [variable, size] : static_shared()) memset(variable, 0xff, size);
  for (unsigned i = 0; i < scheduler.threads; ++i) {
    Fiber& fiber = *scheduler.fibers[i];
    fiber.state = State::kReady;
    fiber.copies.clear();
    fiber.group = 0;
  }
  std::vector<unsigned> warp_order;
  std::vector<unsigned> lane_order;
  do {
    scheduler.order.arrange(warp_order, (scheduler.threads + kWarp - 1) / kWarp);
    for (unsigned warp : warp_order) run_warp(warp * kWarp, lane_order);
  } while (open_barrier());
  free(scheduler.shared);
}

// Returns the name of a kernel without result, template arguments and parameters, as "ppa::cuda::ema_kernel".
std::string kernel_name(const void* kernel) {
  Dl_info info;
  if (dladdr(kernel, &info) == 0 || info.dli_sname == nullptr) return "(not exported)";
  int status;
  const std::unique_ptr<char, decltype(&free)> full(abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status),
                                                    &free);
  if (status != 0) return info.dli_sname;
  std::string name;
  int depth = 0;
  for (const char* c = full.get(); *c != 0 && !(depth == 0 && *c == '('); ++c) {
    if (*c == '<') ++depth;
    if (depth == 0) name += *c;
    if (*c == '>') --depth;
  }
  return name.substr(name.rfind(' ') + 1);  // npos + 1 is 0
}

// Writes the name at the first launch and not at exit, so that a process that aborts has written it.
void trace(const std::string& name) {
  static std::set<std::string> told;
  const char* path = getenv("PPA_SIMT_TRACE");
  if (path == nullptr || !told.insert(name).second) return;
  FILE* file = fopen(path, "a");
  if (file == nullptr || fputs((name + "\n").c_str(), file) < 0 || fclose(file) != 0) {
    perror("ppa simt: PPA_SIMT_TRACE cannot be written");
    abort();
  }
}

}  // namespace

void fail(const std::string& what, Site where) {
  die("thread " + text(scheduler.current->thread) + ": " + what + ", " + text(where));
}

unsigned lane() { return scheduler.current->lane; }

unsigned char* dynamic_shared() { return scheduler.shared; }

void warp_collective(const char* name, unsigned mask, Complete complete, void* operand, Site where) {
  if (!(mask >> lane() & 1)) fail(std::string(name) + " by a lane that its mask lacks", where);
  scheduler.current->wait = {name, where, mask, complete, operand, false};
  give_way(State::kAtWarpCollective);
}

Arrivals block_barrier(const char* name, bool predicate, Site where) {
  scheduler.current->wait = {name, where, 0, nullptr, nullptr, predicate};
  give_way(State::kAtBlockBarrier);
  return scheduler.current->arrivals;
}

namespace {

struct Ballot {
  bool predicate;
  unsigned result;
};

// Fails unless the bytes at `pointer` lie in shared memory and are aligned to their number.
void check_shared(const char* name, const void* pointer, size_t bytes, Site where) {
  auto* first = static_cast<unsigned char*>(const_cast<void*>(pointer));
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) {
    fail(std::string(name) + ": the shared address is not aligned to " + std::to_string(bytes) + " bytes", where);
  }
  if (first >= scheduler.shared && first + bytes <= scheduler.shared + scheduler.shared_bytes) return;
  const auto after = static_shared().upper_bound(first);
  if (after != static_shared().begin()) {
    const auto& [variable, size] = *std::prev(after);
    if (first + bytes <= variable + size) return;
  }
  fail(std::string(name) + ": the " + std::to_string(bytes) + " bytes do not lie in shared memory", where);
}

}  // namespace

unsigned ballot(const char* name, unsigned mask, bool predicate, Site where) {
  Ballot operand{predicate, 0};
  warp_collective(
      name, mask,
      [](void* const(&operands)[32], unsigned lanes) {
        unsigned result = 0;
        for (unsigned i = 0; i < kWarp; ++i) {
          if (lanes >> i & 1 && static_cast<Ballot*>(operands[i])->predicate) result |= 1u << i;
        }
        for (unsigned i = 0; i < kWarp; ++i) {
          if (lanes >> i & 1) static_cast<Ballot*>(operands[i])->result = result;
        }
      },
      &operand, where);
  return operand.result;
}

void copy_async(const char* name, size_t bytes, void* shared, const void* global, bool valid, Site where) {
  check_shared(name, shared, bytes, where);
  if (reinterpret_cast<uintptr_t>(global) % bytes != 0) {
    fail(std::string(name) + ": the global address is not aligned to " + std::to_string(bytes) + " bytes", where);
  }
  memset(shared, 0xff, bytes);
  scheduler.current->copies.push_back({shared, valid ? global : nullptr, bytes, scheduler.current->group});
}

void commit_copies() { ++scheduler.current->group; }

void wait_copies(size_t pending) {
  Fiber& fiber = *scheduler.current;
  std::erase_if(fiber.copies, [&](const Copy& copy) {
    if (copy.group + pending >= fiber.group) return false;
    if (copy.from == nullptr) {
      memset(copy.to, 0, copy.bytes);
    } else {
      memcpy(copy.to, copy.from, copy.bytes);
    }
    return true;
  });
}

namespace {

struct Mma {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

// Not sanitized: every index is within bounds, and the harness spends most of its time here.
__attribute__((no_sanitize("address", "undefined"))) void multiply(const float (&a)[16][16], const float (&b)[16][8],
                                                                   float (&d)[16][8]) {
  for (unsigned i = 0; i < 16; ++i) {
    for (unsigned k = 0; k < 16; ++k) {
      for (unsigned j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
    }
  }
}

// Element (row, column) of a tile is in one register of one lane; see the figures for mma.m16n8k16 in the PTX manual.
template <typename T>
void complete_mma(void* const (&operands)[32], unsigned) {
  const auto element = [](uint32_t pair, unsigned i) { return to_float(T{static_cast<uint16_t>(pair >> (16 * i))}); };
  float a[16][16];
  float b[16][8];
  float d[16][8];
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const auto& mine = *static_cast<const Mma*>(operands[lane]);
    const unsigned row = lane / 4;
    const unsigned column = lane % 4 * 2;
    for (unsigned i = 0; i < 2; ++i) {
      for (unsigned half = 0; half < 2; ++half) {
        a[row + 8 * half][column + i] = element(mine.a[half], i);
        a[row + 8 * half][column + i + 8] = element(mine.a[half + 2], i);
        b[column + i + 8 * half][row] = element(mine.b[half], i);
        d[row + 8 * half][column + i] = mine.d[2 * half + i];
      }
    }
  }
  multiply(a, b, d);
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    float* mine = static_cast<const Mma*>(operands[lane])->d;
    for (unsigned i = 0; i < 4; ++i) mine[i] = d[lane / 4 + 8 * (i / 2)][lane % 4 * 2 + i % 2];
  }
}

struct LoadMatrix {
  uint32_t* r;
  const void* row;
};

template <bool transposed>
void complete_ldmatrix(void* const (&operands)[32], unsigned) {
  uint16_t tiles[4][8][8];
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    memcpy(tiles[lane / 8][lane % 8], static_cast<const LoadMatrix*>(operands[lane])->row, 16);
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const unsigned row = lane / 4;
    const unsigned column = lane % 4 * 2;
    for (unsigned t = 0; t < 4; ++t) {
      const uint32_t low = transposed ? tiles[t][column][row] : tiles[t][row][column];
      const uint32_t high = transposed ? tiles[t][column + 1][row] : tiles[t][row][column + 1];
      static_cast<LoadMatrix*>(operands[lane])->r[t] = low | high << 16;
    }
  }
}

// Unlike a shuffle, these instructions need a full warp. The last warp of a block may be smaller.
void whole_warp_collective(const char* name, Complete complete, void* operand, Site where) {
  if ((scheduler.threads - 1) / kWarp * kWarp + kWarp != scheduler.threads) {
    fail(std::string(name) + " in a block that is not made of whole warps", where);
  }
  warp_collective(name, 0xffffffffu, complete, operand, where);
}

}  // namespace

void mma_m16n8k16(DType dtype, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site where) {
  Mma operand{d, a, {b0, b1}};
  whole_warp_collective("mma_m16n8k16", dtype == DType::kBFloat16 ? complete_mma<bfloat16> : complete_mma<float16>,
                        &operand, where);
}

void ldmatrix_x4(bool transposed, uint32_t (&r)[4], const void* row, Site where) {
  const char* name = transposed ? "ldmatrix_x4_trans" : "ldmatrix_x4";
  check_shared(name, row, 16, where);
  LoadMatrix operand{r, row};
  whole_warp_collective(name, transposed ? complete_ldmatrix<true> : complete_ldmatrix<false>, &operand, where);
}

// The limits are those of sm_90; static shared memory does not count towards its 227 KB here.
Status run(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* context) {
  const std::lock_guard<std::mutex> lock(scheduler.mutex);
  if (shared_bytes > kMaxShared) return "invalid argument";
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (block.x > kMaxThreads || block.y > kMaxThreads || block.z > 64 || threads == 0 || threads > kMaxThreads ||
      grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535) {
    return "invalid configuration argument";
  }
  scheduler.order = Order();
  if (!scheduler.order.parse(getenv("PPA_SIMT_ORDER"))) {
    return "PPA_SIMT_ORDER must be forward, reverse or shuffle:<seed>";
  }
  scheduler.kernel = kernel_name(kernel);
  trace(scheduler.kernel);

  scheduler.threads = static_cast<unsigned>(threads);
  scheduler.shared_bytes = shared_bytes;
  scheduler.body = body;
  scheduler.context = context;
  gridDim = grid;
  blockDim = block;
  while (scheduler.fibers.size() < threads) {
    const unsigned index = static_cast<unsigned>(scheduler.fibers.size());
    scheduler.fibers.push_back(std::make_unique<Fiber>());
    scheduler.fibers.back()->context.start(fiber_main, index);
    scheduler.fibers.back()->lane = index % kWarp;
  }
  for (unsigned i = 0; i < threads; ++i) {
    scheduler.fibers[i]->thread = {i % block.x, i / block.x % block.y, i / block.x / block.y};
  }

  std::vector<unsigned> columns;
  scheduler.order.arrange(columns, grid.x);
  std::vector<unsigned> rows;
  scheduler.order.arrange(rows, grid.y * grid.z);
  for (unsigned yz : rows) {
    for (unsigned x : columns) {
      blockIdx = {x, yz % grid.y, yz / grid.y};
      run_block();
    }
  }
  return nullptr;
}

}  // namespace ppa::simt
