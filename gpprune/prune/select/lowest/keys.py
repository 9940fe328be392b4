"""C++ for the order of float32 values as one of integers, which the selections compare."""

from __future__ import annotations

KEY = r"""
#include <algorithm>
#include <cstdint>
#include <cstring>

// Ordered as the score is: its bits, but for a flip of negative ones.
static inline int32_t key_of(float score) {
  const float plain = score + 0.0f;  // -0 is 0
  int32_t bits;
  std::memcpy(&bits, &plain, 4);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
"""
