"""The lowest scores of each row by bisection: a few passes over a row that stays in cache.

A float32 is, but for a flip of negative ones, ordered as the integer that its bits are. So the
`count`-th lowest of a row is found bit by bit: how many lie below a candidate is a comparison and
a sum, which a processor does for many at once without a branch. It ends early at any candidate
that has exactly `count` below it, which rows without ties have long before the last bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from gpprune.compile import native

# A row of keys is read some 15 times: past the second-level cache other ways are better.
WIDEST = 1 << 16

_SOURCE = r"""
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

extern "C" void select_lowest(const float* scores, int64_t stride, int64_t first, int64_t last,
                              int64_t columns, int64_t count, uint8_t* mask) {
  std::vector<int32_t> keys(columns);
  int32_t* key = keys.data();
  for (int64_t row = first; row < last; row++) {
    const float* score = scores + row * stride;
    uint8_t* chosen = mask + row * columns;
    int32_t least = INT32_MAX, most = INT32_MIN;
#pragma omp simd reduction(min : least) reduction(max : most)
    for (int64_t i = 0; i < columns; i++) {
      const float plain = score[i] + 0.0f;  // -0 is 0
      int32_t bits;
      std::memcpy(&bits, &plain, 4);
      bits ^= (bits >> 31) & 0x7fffffff;
      key[i] = bits;
      least = std::min(least, bits);
      most = std::max(most, bits);
    }
    // below `low` lie at most `count`, below `high` more
    int64_t low = least, high = int64_t(most) + 1, under = 0;
    while (high - low > 1 && under != count) {
      const int32_t middle = int32_t(low + (high - low) / 2);
      int32_t found = 0;
#pragma omp simd reduction(+ : found)
      for (int64_t i = 0; i < columns; i++) found += key[i] < middle;
      if (found > count) {
        high = middle;
      } else {
        low = middle;
        under = found;
      }
    }
    const int32_t threshold = int32_t(low);
#pragma omp simd
    for (int64_t i = 0; i < columns; i++) chosen[i] = key[i] < threshold;
    for (int64_t i = 0, room = count - under; room > 0; i++)
      if (key[i] == threshold) {
        chosen[i] = 1;
        room--;
      }
  }
}
"""


def lowest_by_bisection(scores: Tensor, count: int) -> Tensor | None:
    """As `gpprune.prune.selection.lowest`; None where it cannot be built.

    Args:
        scores: ``[rows, columns]``, float32 on the CPU, without NaN.
        count: from 1 to ``columns - 1``.
    """
    function = _built()
    if function is None:
        return None
    scores = scores if scores.stride(1) == 1 else scores.contiguous()
    rows, columns = scores.shape
    mask = torch.empty(rows, columns, dtype=torch.bool)
    parts = native.shares(rows, columns)

    def share(at: int) -> None:
        first, last = parts[at]
        given = (scores.data_ptr(), scores.stride(0), first, last, columns, count)
        function(*given, mask.data_ptr())

    native.together(share, len(parts))
    return mask


@lru_cache(maxsize=1)
def _built() -> Callable[..., None] | None:
    library = native.library(_SOURCE)
    if library is None:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.select_lowest.argtypes = [pointer, *[number] * 5, pointer]
    library.select_lowest.restype = None
    return library.select_lowest
