"""The C++ functions that the machine and generated code share.

The standard library's headers are left out: parsing them takes longer than compiling a formula.
"""

from __future__ import annotations

from collections.abc import Iterable

PRELUDE = r"""
typedef unsigned char uint8;
typedef unsigned short uint16;
typedef int int32;
typedef unsigned int uint32;
typedef long long int64;
typedef unsigned long long uint64;

#if __has_include(<features.h>)
#include <features.h>
#endif
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
// glibc's vector versions, which its header declares under -ffast-math alone
#define MATH __attribute__((simd("notinbranch")))
#else
#define MATH
#endif
// Inlined into its caller's loops, a reduction is no longer done for several elements at once.
#define ALONE __attribute__((noinline, unused))
extern "C" {
MATH float expf(float) noexcept;
MATH float logf(float) noexcept;
MATH float powf(float, float) noexcept;
MATH float tanhf(float) noexcept;
}

namespace {

constexpr float LARGEST = 3.4028234663852886e38f, TINY = 1.1754943508222875e-38f;

// Of a NaN and a number the NaN, whichever of the two it is.
template <class T> inline T min(T a, T b) { return (b < a) | (b != b) ? b : a; }
template <class T> inline T max(T a, T b) { return (a < b) | (b != b) ? b : a; }
inline float fabs(float a) { return __builtin_fabsf(a); }
inline float sqrt(float a) { return __builtin_sqrtf(a); }
inline uint32 bits(float a) { uint32 u; __builtin_memcpy(&u, &a, 4); return u; }
inline float number(uint32 u) { float a; __builtin_memcpy(&a, &u, 4); return a; }

// By integers, which compilers leave as they are: what looks like a branch some of them make into
// one, and then the loop around it is no longer done for several elements at once.
inline float where(bool kept, float a) { return number(bits(a) & -uint32(kept)); }
// As the templates above, without what looks like a branch.
inline float nan_if(bool lost, float a) { return number(bits(a) | -uint32(lost)); }
inline float min(float a, float b) { return nan_if(b != b, b < a ? b : a); }
inline float max(float a, float b) { return nan_if(b != b, a < b ? b : a); }
inline float saturate(float a) {
  const uint32 size = bits(a) & 0x7fffffff, sign = bits(a) & 0x80000000;
  const uint32 nan = -uint32(size > 0x7f800000) & 0x7fffffff;
  return number(min(size, bits(LARGEST)) | nan | sign);
}
inline float quotient(float a, float b) { return where(b != 0, saturate(a / b)); }
inline float power(float a, float b) {
  const float size = fabs(a);
  return where((size != 0) | (b >= 0), saturate(powf(size, b)));
}

// Rounded to float16 and back, to even: ten bits of mantissa, or a multiple of 2^-24 below 2^-14.
inline float half(float a) {
  const float size = min(fabs(a), 65504.0f);
  const uint32 u = bits(size);
  const float normal = number((u + 0xfff + (u >> 13 & 1)) & ~uint32(0x1fff));
  const float subnormal = (size + 0.75f) - 0.75f;
  return __builtin_copysignf(size >= 6.103515625e-05f ? normal : subnormal, a);  // or NaN
}
inline float from_float16(uint16 h) {
  const float size = number(uint32(h & 0x7fff) << 13) * 5.192296858534828e33f;  // 2^112
  const uint32 infinite = -uint32((h & 0x7c00) == 0x7c00) & 0x7f800000;  // or not a number
  return number(bits(size) | infinite | uint32(h & 0x8000) << 16);
}
inline float from_bfloat16(uint16 h) { return number(uint32(h) << 16); }

ALONE void sum(double& state, const float* a, int64 n) {
  double s = 0;
#pragma omp simd reduction(+ : s)
  for (int64 i = 0; i < n; i++) s += a[i];
  state += s;
}
ALONE void norm(double& state, const float* a, int64 n) {
  double s = 0;
#pragma omp simd reduction(+ : s)
  for (int64 i = 0; i < n; i++) s += double(a[i]) * a[i];
  state += s;
}
// Parts of an extremum are joined by a plain comparison, which a NaN would get lost in.
ALONE void min(double& state, const float* a, int64 n) {
  float m = a[0];
  uint32 nan = 0;
#pragma omp simd reduction(min : m) reduction(| : nan)
  for (int64 i = 0; i < n; i++) {
    m = a[i] < m ? a[i] : m;
    nan |= a[i] != a[i];
  }
  state = min(state, nan ? __builtin_nan("") : double(m));
}
ALONE void max(double& state, const float* a, int64 n) {
  float m = a[0];
  uint32 nan = 0;
#pragma omp simd reduction(max : m) reduction(| : nan)
  for (int64 i = 0; i < n; i++) {
    m = m < a[i] ? a[i] : m;
    nan |= a[i] != a[i];
  }
  state = max(state, nan ? __builtin_nan("") : double(m));
}
// Chan, Golub and LeVeque 1979: count, sum and sum of squares about the mean, chunk by chunk.
ALONE void moments(double& first, const float* a, int64 n) {
  double* state = &first;
  double total = 0, spread = 0;
  sum(total, a, n);
  const double centre = total / n;
#pragma omp simd reduction(+ : spread)
  for (int64 i = 0; i < n; i++) spread += (a[i] - centre) * (a[i] - centre);
  if (state[0] > 0) {
    const double apart = centre - state[1] / state[0];
    spread += apart * apart * (state[0] * n / (state[0] + n));
  }
  state[0] += n;
  state[1] += total;
  state[2] += spread;
}

// Past the caches, which would first read what is to be written over.
ALONE void stream(float* r, const float* x, int64 n) {
  int64 i = 0;
#ifdef __AVX__
  typedef float Eight __attribute__((vector_size(32)));
  typedef float Loose __attribute__((vector_size(32), aligned(4)));
  for (; i < n && reinterpret_cast<uint64>(r + i) % 32; i++) r[i] = x[i];
  for (; i + 8 <= n; i += 8) {
    const Eight eight = *reinterpret_cast<const Loose*>(x + i);
#ifdef __clang__
    __builtin_nontemporal_store(eight, reinterpret_cast<Eight*>(r + i));
#else
    __builtin_ia32_movntps256(r + i, eight);
#endif
  }
#endif
  for (; i < n; i++) r[i] = x[i];
}

}  // namespace
"""

# What is added up in C++, and over which axis; other reductions of a matrix are torch's.
REDUCTIONS = (
    *(f"{kind} {axis}" for kind in ("sum", "norm", "min", "max") for axis in ("in", "out", "all")),
    "moments all",
)

# What a reduction over output neurons does with each element; one over a whole row or matrix calls
# the function of its name on a chunk.
EACH = {
    "sum": "{0} += {1};",
    "norm": "{0} += double({1}) * {1};",
    "min": "{0} = min({0}, double({1}));",
    "max": "{0} = max({0}, double({1}));",
}


def loop(lines: Iterable[str], indent: str = "") -> list[str]:
    """The lines as the body of a loop over the `n` elements of a chunk, several at once."""
    head = ("#pragma omp simd", f"{indent}for (int64 i = 0; i < n; i++) {{")
    return [*head, *(f"{indent}  {line}" for line in lines), f"{indent}}}"]
