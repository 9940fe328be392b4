"""The lowest scores of a row that no cache holds, by counting: three passes, and no copy of it.

The first counts how often each upper half of a key occurs, the second each lower half among those
with the upper half in which the `count`-th lowest lies, which is then known exactly; the third
writes the mask. Every thread counts in a share of the row of its own, which also says how many
ties with the `count`-th lowest lie before a share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpprune.compile.cpp import native
from gpprune.prune.select.keys import KEY

_HALVES = 1 << 16  # values of half a key

_SOURCE = (
    KEY
    + r"""
constexpr int64_t BLOCK = 64;

// Upper halves, from the least.
extern "C" void count_upper(const float* score, int64_t first, int64_t last, int64_t* counts) {
  int32_t upper[BLOCK];
  for (int64_t at = first; at < last; at += BLOCK) {
    const int64_t size = std::min(BLOCK, last - at);
#pragma omp simd
    for (int64_t i = 0; i < size; i++) upper[i] = (key_of(score[at + i]) >> 16) + (1 << 15);
    for (int64_t i = 0; i < size; i++) counts[upper[i]]++;
  }
}

// Lower halves of those with one upper half.
extern "C" void count_lower(const float* score, int64_t first, int64_t last, int64_t upper,
                            int64_t* counts) {
  const int32_t wanted = int32_t(upper) - (1 << 15);
  int32_t key[BLOCK];
  for (int64_t at = first; at < last; at += BLOCK) {
    const int64_t size = std::min(BLOCK, last - at);
    int32_t any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t i = 0; i < size; i++) {
      const int32_t one = key_of(score[at + i]);
      key[i] = one;
      any |= one >> 16 == wanted;
    }
    if (!any) continue;
    int64_t found = 0;
    for (int64_t i = 0; i < size; i++) {  // without a branch that few would foresee
      const int32_t one = key[i];
      key[found] = one;
      found += one >> 16 == wanted;
    }
    for (int64_t i = 0; i < found; i++) counts[key[i] & 0xffff]++;
  }
}

// All below the threshold, and the first `ties` that equal it.
extern "C" void choose(const float* score, int64_t first, int64_t last, int64_t threshold,
                       int64_t ties, uint8_t* mask) {
  const int32_t limit = int32_t(threshold);
  for (int64_t at = first; at < last; at += BLOCK) {
    const int64_t size = std::min(BLOCK, last - at);
    int32_t any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t i = at; i < at + size; i++) {
      const int32_t key = key_of(score[i]);
      mask[i] = key < limit;
      any |= key == limit;
    }
    if (!any || ties == 0) continue;
    for (int64_t i = at; i < at + size; i++) {
      const bool goes = (key_of(score[i]) == limit) & (ties > 0);
      mask[i] |= goes;
      ties -= goes;
    }
  }
}
"""
)


def lowest_by_histogram(scores: Tensor, count: int) -> Tensor | None:
    """As `gpprune.prune.select.selection.lowest`; None where it cannot be built.

    Args:
        scores: ``[rows, columns]``, float32 on the CPU, without NaN.
        count: from 1 to ``columns - 1``.
    """
    functions = native.functions(_SOURCE, count_upper="pnnp", count_lower="pnnnp", choose="pnnnnp")
    if functions is None:
        return None
    scores = scores if scores.stride(1) == 1 else scores.contiguous()
    mask = torch.empty(scores.shape, dtype=torch.bool)
    for row, chosen in zip(scores, mask, strict=True):
        _select(row, count, chosen, functions)
    return mask


def _select(
    row: Tensor, count: int, mask: Tensor, functions: Sequence[Callable[..., None]]
) -> None:
    """As `lowest_by_histogram`, of one row, into its mask."""
    count_upper, count_lower, choose = functions
    scores = row.data_ptr()
    parts = native.shares(len(row), 1)

    def counts(function: Callable[..., None], *given: int) -> NDArray[np.int64]:
        found = np.zeros((len(parts), _HALVES), np.int64)

        def share(at: int) -> None:
            function(scores, *parts[at], *given, found[at].ctypes.data)

        native.together(share, len(parts))
        return found

    upper, left = _place(counts(count_upper), count)
    found = counts(count_lower, upper)
    lower, left = _place(found, left)
    threshold = (upper - _HALVES // 2) * _HALVES + lower
    tied = found[:, lower]
    before = tied.cumsum() - tied
    ties = (left - before).clip(0, tied)

    def share(at: int) -> None:
        choose(scores, *parts[at], threshold, ties[at], mask.data_ptr())

    native.together(share, len(parts))


def _place(counts: NDArray[np.int64], count: int) -> tuple[int, int]:
    """The column that holds the `count`-th of all, and its place in there, from 1."""
    upto = counts.sum(0).cumsum()
    column = int(np.searchsorted(upto, count))
    return column, count - int(upto[column] - counts[:, column].sum())
