// What CUDA C++ stands on, for the units of one block at a time on a CPU.
//
// A unit is a fiber: it runs until it meets a barrier or ends, then the next one does. Between two barriers, units so run
// one after the other, each seeing what those before it wrote; a barrier that not all of them meet ends the program. Each
// unit of a plane does the whole work of a tensor core by itself; they write the same values to the same places. A tensor
// core's operands lose the bits that TF32 has not.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <ucontext.h>

#define __device__
#define __global__
#define __shared__
#define __align__(bytes)
#define __launch_bounds__(units)
#define __grid_constant__

struct Place {
  uint32_t x, y, z;
};

static Place threadIdx, blockIdx, blockDim, gridDim;

// The upper half of a float, to the nearest, ties to even; what is computed of it is a float.
struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float value) {
    uint32_t all;
    std::memcpy(&all, &value, 4);
    bits = value != value ? 0x7fff : (all + 0x7fff + (all >> 16 & 1)) >> 16;
  }
  operator float() const {
    uint32_t all = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &all, 4);
    return value;
  }
};

// Of a block; as CUDA has it, no two launches share it.
alignas(256) static char shared_memory[256 * 1024];

template <class A, class B>
static std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
static std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
static float min(float a, float b) { return fminf(a, b); }
static float max(float a, float b) { return fmaxf(a, b); }
static uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
static int __clz(uint32_t x) { return x == 0 ? 32 : __builtin_clz(x); }

static float added(void *place, float value) {
  float before = *static_cast<float *>(place);
  *static_cast<float *>(place) = before + value;
  return before;
}

namespace fibers {
constexpr size_t stack_bytes = 64 * 1024;

constexpr size_t plane_units = 32;

enum class State { runs, waits_for_plane, waits_for_block, ended };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(stack_bytes);
  Place place;
  State state;
};

static std::vector<Fiber> all;
static ucontext_t home;
static size_t now;
static void (*body)();

static void leave(State state) {
  all[now].state = state;
  swapcontext(&all[now].context, &home);
}

static void begin() {
  body();
  leave(State::ended);
}

// Lets units go on of which all that have not ended wait for one another.
static bool pass(size_t first, size_t end, State barrier) {
  bool some = false;
  for (size_t unit = first; unit < end; unit++) {
    if (all[unit].state != barrier && all[unit].state != State::ended) return false;
    some |= all[unit].state == barrier;
  }
  for (size_t unit = first; unit < end; unit++)
    if (all[unit].state == barrier) all[unit].state = State::runs;
  return some;
}

// One block; `body` is what a unit does.
static void block(size_t units) {
  while (all.size() < units) all.emplace_back();
  for (size_t unit = 0; unit < units; unit++) {
    Fiber &fiber = all[unit];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &home;
    fiber.place = {uint32_t(unit % blockDim.x), uint32_t(unit / blockDim.x % blockDim.y),
                   uint32_t(unit / (blockDim.x * blockDim.y))};
    fiber.state = State::runs;
    makecontext(&fiber.context, begin, 0);
  }
  for (;;) {
    for (now = 0; now < units; now++) {
      if (all[now].state != State::runs) continue;
      threadIdx = all[now].place;
      swapcontext(&home, &all[now].context);
    }
    bool some = pass(0, units, State::waits_for_block);
    for (size_t first = 0; first < units; first += plane_units)
      some |= pass(first, std::min(first + plane_units, units), State::waits_for_plane);
    if (some) continue;
    for (size_t unit = 0; unit < units; unit++)
      if (all[unit].state != State::ended) abort();
    return;
  }
}
}  // namespace fibers

static void __syncthreads() { fibers::leave(fibers::State::waits_for_block); }
static void __syncwarp() { fibers::leave(fibers::State::waits_for_plane); }

namespace nvcuda::wmma {
struct accumulator {};
struct matrix_a {};
struct matrix_b {};
struct row_major {};
struct col_major {};
namespace precision {
struct tf32 {};
}
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class Type, class Layout = row_major>
struct fragment {
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? K : M;
  static constexpr int columns = std::is_same_v<Use, matrix_a> ? K : N;
  static constexpr int num_elements = rows * columns;
  float x[num_elements];
  float &at(int row, int column) { return x[row * columns + column]; }
  float at(int row, int column) const { return x[row * columns + column]; }
};

// To the nearest, ties away from zero.
static float __float_to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits = (bits + 0x1000) & ~0x1fffu;
  std::memcpy(&x, &bits, 4);
  return x;
}

static float cut_to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits &= ~0x1fffu;
  std::memcpy(&x, &bits, 4);
  return x;
}

template <class Fragment>
static void fill_fragment(Fragment &to, float value) {
  for (float &cell : to.x) cell = value;
}

template <class Use, int M, int N, int K, class Layout>
static void load_matrix_sync(fragment<Use, M, N, K, precision::tf32, Layout> &to, const float *from, unsigned step) {
  // The device wants operands on 32 bytes.
  if (reinterpret_cast<uintptr_t>(from) % 32 != 0 || step % 4 != 0) abort();
  for (int row = 0; row < to.rows; row++)
    for (int column = 0; column < to.columns; column++)
      to.at(row, column) = from[std::is_same_v<Layout, row_major> ? row * step + column : column * step + row];
}

template <int M, int N, int K, class Layout>
static void load_matrix_sync(fragment<accumulator, M, N, K, float, Layout> &to, const float *from, unsigned step,
                             layout_t layout) {
  if (reinterpret_cast<uintptr_t>(from) % 32 != 0 || step % 4 != 0) abort();
  for (int row = 0; row < M; row++)
    for (int column = 0; column < N; column++)
      to.at(row, column) = from[layout == mem_row_major ? row * step + column : column * step + row];
}

template <int M, int N, int K, class LayoutA, class LayoutB>
static void mma_sync(fragment<accumulator, M, N, K, float> &to,
                     const fragment<matrix_a, M, N, K, precision::tf32, LayoutA> &a,
                     const fragment<matrix_b, M, N, K, precision::tf32, LayoutB> &b,
                     const fragment<accumulator, M, N, K, float> &from) {
  auto result = from;
  for (int row = 0; row < M; row++)
    for (int column = 0; column < N; column++)
      for (int line = 0; line < K; line++)
        result.at(row, column) += cut_to_tf32(a.at(row, line)) * cut_to_tf32(b.at(line, column));
  to = result;
}

template <int M, int N, int K>
static void store_matrix_sync(float *to, const fragment<accumulator, M, N, K, float> &from, unsigned step, layout_t layout) {
  for (int row = 0; row < M; row++)
    for (int column = 0; column < N; column++)
      to[layout == mem_row_major ? row * step + column : column * step + row] = from.at(row, column);
}
}  // namespace nvcuda::wmma

static void **arguments;

// Calls the function with its arguments, each of which lies where the launch says.
template <class... A, size_t... I>
static void call(void (*function)(A...), std::index_sequence<I...>) {
  function(*static_cast<std::remove_cv_t<A> *>(arguments[I])...);
}
template <class... A>
static void call(void (*function)(A...)) {
  call(function, std::index_sequence_for<A...>());
}

static void launch(void (*unit)(), const uint32_t *sizes, void **given) {
  fibers::body = unit;
  arguments = given;
  gridDim = {sizes[0], sizes[1], sizes[2]};
  blockDim = {sizes[3], sizes[4], sizes[5]};
  for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++)
        fibers::block(size_t(blockDim.x) * blockDim.y * blockDim.z);
}
