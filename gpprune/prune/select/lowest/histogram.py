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
from gpprune.prune.select.lowest.keys import KEY

HALVES = 1 << 16  # values of half a key

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
    """As `gpprune.prune.select.lowest.selection.lowest`; None where it cannot be built.

    Args:
        scores: ``[rows, columns]``, float32 on the CPU, without NaN.
        count: from 1 to ``columns - 1``.
    """
    functions = _functions()
    if functions is None:
        return None
    scores = scores if scores.stride(1) == 1 else scores.contiguous()
    mask = torch.empty(scores.shape, dtype=torch.bool)
    for row, chosen in zip(scores, mask, strict=True):
        _select(row, count, chosen, functions)
    return mask


def count_halves(scores: Tensor, upper: int | None = None) -> NDArray[np.int64]:
    """How many keys of scores have each upper half, or each lower half beside one upper half.

    Args:
        scores: of any shape, float32 on any device, without NaN.
        upper: the upper half, from 0, among whose keys lower halves are counted.

    Returns:
        ``[65536]``: counts from the least half.
    """
    functions = _functions() if scores.device.type == "cpu" else None
    if functions is None:
        return _counted_by_torch(scores, upper)
    row = scores.reshape(-1)
    parts = native.shares(len(row), 1)
    found: NDArray[np.int64] = _counts(functions, row.contiguous(), parts, upper).sum(0)
    return found


def _counted_by_torch(scores: Tensor, upper: int | None) -> NDArray[np.int64]:
    """As `count_halves`, without a compiler and on an accelerator."""
    keys = (scores.reshape(-1) + 0.0).view(torch.int32)
    keys = keys ^ ((keys >> 31) & 0x7FFFFFFF)
    halves = (keys >> 16) + HALVES // 2
    if upper is not None:
        halves = (keys & 0xFFFF)[halves == upper]
    found: NDArray[np.int64] = torch.bincount(halves, minlength=HALVES).cpu().numpy()
    return found


_Functions = Sequence[Callable[..., None]]
_Parts = Sequence[tuple[int, int]]


def _functions() -> _Functions | None:
    return native.functions(_SOURCE, count_upper="pnnp", count_lower="pnnnp", choose="pnnnnp")


def _counts(
    functions: _Functions, row: Tensor, parts: _Parts, upper: int | None
) -> NDArray[np.int64]:
    """As `count_halves`, of each part of a row: ``[parts, 65536]``."""
    count_upper, count_lower, _ = functions
    found = np.zeros((len(parts), HALVES), np.int64)

    def share(at: int) -> None:
        counts = found[at].ctypes.data
        if upper is None:
            count_upper(row.data_ptr(), *parts[at], counts)
        else:
            count_lower(row.data_ptr(), *parts[at], upper, counts)

    native.together(share, len(parts))
    return found


def _select(row: Tensor, count: int, mask: Tensor, functions: _Functions) -> None:
    """As `lowest_by_histogram`, of one row, into its mask."""
    *_, choose = functions
    parts = native.shares(len(row), 1)
    upper, left = _place(_counts(functions, row, parts, None), count)
    found = _counts(functions, row, parts, upper)
    lower, left = _place(found, left)
    threshold = (upper - HALVES // 2) * HALVES + lower
    tied = found[:, lower]
    before = tied.cumsum() - tied
    ties = (left - before).clip(0, tied)

    def share(at: int) -> None:
        choose(row.data_ptr(), *parts[at], threshold, ties[at], mask.data_ptr())

    native.together(share, len(parts))


def _place(counts: NDArray[np.int64], count: int) -> tuple[int, int]:
    """The column that holds the `count`-th of all, and its place in there, from 1."""
    upto = counts.sum(0).cumsum()
    column = int(np.searchsorted(upto, count))
    return column, count - int(upto[column] - counts[:, column].sum())
