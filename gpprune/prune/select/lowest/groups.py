"""The lowest scores of each of many short rows, as N:M groups are, by every score's rank.

A rank is how many of the row lie before a score. Comparing every pair takes no branch, and many
rows go through it at once, once their columns lie in arrays of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpprune.compile.cpp import native

WIDEST_GROUP = 16  # up to here comparing all pairs beats a selection in each row

_SOURCE = (
    f"constexpr int WIDEST = {WIDEST_GROUP};\n"
    r"""
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

constexpr int64_t BLOCK = 128;  // rows at once

// Of equal scores the earlier one ranks lower. A fold rather than a loop over the other columns:
// with one inside, the loop over rows is not vectorised.
template <size_t own, size_t width, size_t... other>
static inline void rank(const float (&column)[width][BLOCK], int32_t count,
                        uint8_t (&chosen)[width][BLOCK], std::index_sequence<other...>) {
#pragma omp simd
  for (int64_t row = 0; row < BLOCK; row++) {
    const float score = column[own][row];
    const int32_t before =
        ((other < own ? column[other][row] <= score : column[other][row] < score) + ...);
    chosen[own][row] = before < count;
  }
}

template <size_t width, size_t... all>
static void select_rows(const float* scores, int64_t first, int64_t last, int32_t count,
                        uint8_t* mask, std::index_sequence<all...> columns) {
  float column[width][BLOCK] = {};
  uint8_t chosen[width][BLOCK];
  for (int64_t at = first; at < last; at += BLOCK) {
    const int64_t size = std::min(BLOCK, last - at);
    const float* score = scores + at * width;
    uint8_t* goes = mask + at * width;
    for (int64_t row = 0; row < size; row++)
      for (size_t i = 0; i < width; i++) column[i][row] = score[row * width + i];
    (rank<all>(column, count, chosen, columns), ...);
    for (int64_t row = 0; row < size; row++)
      for (size_t i = 0; i < width; i++) goes[row * width + i] = chosen[i][row];
  }
}

template <size_t width>
static void select_width(const float* scores, int64_t first, int64_t last, int64_t columns,
                         int32_t count, uint8_t* mask) {
  if (columns == width)
    select_rows<width>(scores, first, last, count, mask, std::make_index_sequence<width>());
  else if constexpr (width > 2)
    select_width<width - 1>(scores, first, last, columns, count, mask);
}

extern "C" void select_groups(const float* scores, int64_t first, int64_t last, int64_t columns,
                              int64_t count, uint8_t* mask) {
  select_width<WIDEST>(scores, first, last, columns, int32_t(count), mask);
}
"""
)


def lowest_of_groups(scores: Tensor, count: int) -> Tensor | None:
    """As `gpprune.prune.select.lowest.selection.lowest`; None where it cannot be built.

    Args:
        scores: ``[rows, columns]`` with 2 to `WIDEST_GROUP` columns, float32 on the CPU, without
            NaN.
        count: from 1 to ``columns - 1``.
    """
    built = native.functions(_SOURCE, select_groups="pnnnnp")
    if built is None:
        return None
    (select_groups,) = built
    scores = scores.contiguous()
    rows, columns = scores.shape
    mask = torch.empty(rows, columns, dtype=torch.bool)
    parts = native.shares(rows, columns)

    def share(at: int) -> None:
        select_groups(scores.data_ptr(), *parts[at], columns, count, mask.data_ptr())

    native.together(share, len(parts))
    return mask
