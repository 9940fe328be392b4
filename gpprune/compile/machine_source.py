"""The C++ of the machine, assembled from the table of primitives.

One function, `sweep`, goes over rows of a matrix in chunks that stay in the first-level cache and
does a list of steps on each: an elementwise primitive, a widening of 16-bit numbers, or a
reduction into doubles. What a step does is a number, so a formula is data: nothing is compiled
for it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..primitives import PRIMITIVES

CHUNK = 1024  # floats of a chunk: 4 KB, so that eight temporaries fit a first-level cache
# Slots lie no multiple of 4 KB apart: a store and a load at such a distance wait for each other.
STRIDE = CHUNK + 80

# Which of an elementwise step's arguments vary along a chunk, by the step's variant.
VARIANTS = ((True, True), (True, False), (False, True))

# Reductions and widenings, by code; what the primitives compute comes after them.
OTHERS = (
    *(f"{kind} {axis}" for kind in ("sum", "norm", "min", "max") for axis in ("in", "out", "all")),
    *("moments all", "float16", "bfloat16", "stream"),
)

_HEAD = r"""
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX__
#include <immintrin.h>
#endif

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
extern "C" {
// glibc's vector versions, which its header declares under -ffast-math alone
__attribute__((simd("notinbranch"))) float expf(float) noexcept;
__attribute__((simd("notinbranch"))) float logf(float) noexcept;
__attribute__((simd("notinbranch"))) float powf(float, float) noexcept;
__attribute__((simd("notinbranch"))) float tanhf(float) noexcept;
}
#endif

namespace {

constexpr float LARGEST = 3.4028234663852886e38f, TINY = 1.1754943508222875e-38f;

inline float saturate(float a) {
  a = a > LARGEST ? LARGEST : a;
  return a < -LARGEST ? -LARGEST : a;
}
inline float quotient(float a, float b) { return b == 0 ? 0.0f : saturate(a / b); }
inline float power(float a, float b) {
  const float size = std::fabs(a), raised = powf(size, b);
  return size == 0 && b < 0 ? 0.0f : saturate(raised);
}
inline uint32_t bits(float a) { uint32_t u; std::memcpy(&u, &a, 4); return u; }
inline float number(uint32_t u) { float a; std::memcpy(&a, &u, 4); return a; }

// Rounded to float16 and back, to even: ten bits of mantissa, or a multiple of 2^-24 below 2^-14.
inline float half(float a) {
  const float size = std::min(std::fabs(a), 65504.0f);
  const uint32_t u = bits(size);
  const float normal = number((u + 0xfff + (u >> 13 & 1)) & ~uint32_t(0x1fff));
  const float subnormal = (size + 0.75f) - 0.75f;
  return std::copysign(size < 6.103515625e-05f ? subnormal : normal, a);
}
inline float from_float16(uint16_t h) {
  const float size = number(uint32_t(h & 0x7fff) << 13) * 5.192296858534828e33f;  // 2^112
  return number(bits(size) | uint32_t(h & 0x8000) << 16);
}
inline float from_bfloat16(uint16_t h) { return number(uint32_t(h) << 16); }

struct Place { char* base; int64_t row; int32_t size; int32_t slot; };
struct Step { int32_t code; int32_t variant; Place result; Place arguments[3]; };

constexpr int64_t CHUNK = @CHUNK@, STRIDE = @STRIDE@;

inline char* at(const Place& p, int64_t row, int64_t column, float* scratch) {
  if (p.slot >= 0) return reinterpret_cast<char*>(scratch + p.slot * STRIDE);
  return p.base + row * p.row + column * p.size;
}

inline double sum(const float* a, int64_t n) {
  double s = 0;
#pragma omp simd reduction(+ : s)
  for (int64_t i = 0; i < n; i++) s += a[i];
  return s;
}
inline double squares(const float* a, int64_t n) {
  double s = 0;
#pragma omp simd reduction(+ : s)
  for (int64_t i = 0; i < n; i++) s += double(a[i]) * a[i];
  return s;
}
inline float least(const float* a, int64_t n) {
  float m = a[0];
#pragma omp simd reduction(min : m)
  for (int64_t i = 0; i < n; i++) m = std::min(m, a[i]);
  return m;
}
inline float greatest(const float* a, int64_t n) {
  float m = a[0];
#pragma omp simd reduction(max : m)
  for (int64_t i = 0; i < n; i++) m = std::max(m, a[i]);
  return m;
}
// Chan, Golub and LeVeque 1979: count, sum and sum of squares about the mean, chunk by chunk.
inline void moments(double* state, const float* a, int64_t n) {
  const double total = sum(a, n), centre = total / n;
  double spread = 0;
#pragma omp simd reduction(+ : spread)
  for (int64_t i = 0; i < n; i++) spread += (a[i] - centre) * (a[i] - centre);
  if (state[0] > 0) {
    const double apart = centre - state[1] / state[0];
    spread += apart * apart * (state[0] * n / (state[0] + n));
  }
  state[0] += n;
  state[1] += total;
  state[2] += spread;
}

// Past the caches, which would first read what is to be written over.
inline void stream(float* r, const float* x, int64_t n) {
  int64_t i = 0;
#ifdef __AVX__
  for (; i < n && reinterpret_cast<uintptr_t>(r + i) % 32; i++) r[i] = x[i];
  for (; i + 8 <= n; i += 8) _mm256_stream_ps(r + i, _mm256_loadu_ps(x + i));
#endif
  for (; i < n; i++) r[i] = x[i];
}

}  // namespace

extern "C" void sweep(const Step* steps, int64_t count, int64_t first, int64_t last,
                      int64_t columns, float* scratch) {
  for (int64_t row = first; row < last; row++)
    for (int64_t column = 0; column < columns; column += CHUNK) {
      const int64_t n = std::min(CHUNK, columns - column);
      for (int64_t s = 0; s < count; s++) {
        const Step& step = steps[s];
        char* result = at(step.result, row, column, scratch);
        const float* x = reinterpret_cast<float*>(at(step.arguments[0], row, column, scratch));
        const float* y = reinterpret_cast<float*>(at(step.arguments[1], row, column, scratch));
        const float* z = reinterpret_cast<float*>(at(step.arguments[2], row, column, scratch));
        float* r = reinterpret_cast<float*>(result);
        double* d = reinterpret_cast<double*>(result);
        (void)y; (void)z;
        switch (step.code * 4 + step.variant) {
"""

_TAIL = """
        }
      }
    }
}
"""

_REDUCTIONS = {
    "sum": ("*d += sum(x, n);", "d[i] += x[i]"),
    "norm": ("*d += squares(x, n);", "d[i] += double(x[i]) * x[i]"),
    "min": ("*d = std::min(*d, double(least(x, n)));", "d[i] = std::min(d[i], double(x[i]))"),
    "max": ("*d = std::max(*d, double(greatest(x, n)));", "d[i] = std::max(d[i], double(x[i]))"),
    "moments": ("moments(d, x, n);", ""),
}


def source() -> str:
    """The machine's C++."""
    cases = "\n".join([*_other_cases(), *_primitive_cases()])
    return _HEAD.replace("@CHUNK@", str(CHUNK)).replace("@STRIDE@", str(STRIDE)) + cases + _TAIL


def code_of(name: str) -> int:
    """The code of a primitive, or of one of `OTHERS`."""
    return _CODES[name]


_MACHINE = [name for name, entry in PRIMITIVES.items() if entry.lowering.scalar]
_CODES = {name: code for code, name in enumerate([*OTHERS, *_MACHINE])}


def _other_cases() -> Iterator[str]:
    for name in OTHERS:
        kind, _, axis = name.partition(" ")
        if kind == "stream":
            body = "stream(r, x, n);"
        elif kind in ("float16", "bfloat16"):
            body = (
                "{ const uint16_t* h = reinterpret_cast<const uint16_t*>(x);"
                f" {_loop(f'r[i] = from_{kind}(h[i])')} }}"
            )
        else:
            whole, each = _REDUCTIONS[kind]
            body = _loop(each) if axis == "out" else whole
        yield f"case {_CODES[name] * 4}: {body} break;  // {name}"


def _primitive_cases() -> Iterator[str]:
    for name in _MACHINE:
        places = PRIMITIVES[name].lowering.reads
        letters = ["abc"[place] for place in places]
        for variant, varies in enumerate(VARIANTS):
            if len(places) == 1 and variant:
                break  # one argument, which varies: else there would be no matrix
            if len(places) == 3 and variant != 1:
                continue  # a normalisation: a matrix and two numbers
            values = [
                f"const float {letter} = {source}{'[i]' if moves else '[0]'};"
                for letter, source, moves in zip(
                    letters, "xyz", (*varies, False) if len(places) == 3 else varies, strict=False
                )
            ]
            inside = " ".join(values) + f" r[i] = {PRIMITIVES[name].lowering.scalar};"
            yield f"case {_CODES[name] * 4 + variant}: {_loop(inside)} break;  // {name}"


def _loop(body: str) -> str:
    return (
        '{ _Pragma("omp simd") for (int64_t i = 0; i < n; i++) { '
        + body.removesuffix(";")
        + "; } }"
    )
