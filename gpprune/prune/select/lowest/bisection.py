"""The lowest scores of each row by bisection: a few passes over a row that stays in cache.

The `count`-th lowest of a row's keys is found bit by bit: how many lie below a candidate is a
comparison and a sum, which a processor does for many at once without a branch. It ends early at
any candidate that has exactly `count` below it, which rows without ties have long before the last
bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpprune.compile.cpp import native
from gpprune.prune.select.lowest.keys import KEY

# A row of keys is read some 15 times: of more than a shared cache holds, counting is faster.
WIDEST = 1 << 19

_SOURCE = (
    KEY
    + r"""
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
      const int32_t one = key_of(score[i]);
      key[i] = one;
      least = std::min(least, one);
      most = std::max(most, one);
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
)


def lowest_by_bisection(scores: Tensor, count: int) -> Tensor | None:
    """As `gpprune.prune.select.lowest.selection.lowest`; None where it cannot be built.

    Args:
        scores: ``[rows, columns]``, float32 on the CPU, without NaN.
        count: from 1 to ``columns - 1``.
    """
    built = native.functions(_SOURCE, select_lowest="pnnnnnp")
    if built is None:
        return None
    (select_lowest,) = built
    scores = scores if scores.stride(1) == 1 else scores.contiguous()
    rows, columns = scores.shape
    mask = torch.empty(rows, columns, dtype=torch.bool)
    parts = native.shares(rows, columns)

    def share(at: int) -> None:
        first, last = parts[at]
        given = (scores.data_ptr(), scores.stride(0), first, last, columns, count)
        select_lowest(*given, mask.data_ptr())

    native.together(share, len(parts))
    return mask
