"""Swaps in the rows of a weight in C++: each row by itself, what it works on in the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from gpprune.compile.cpp import native

NARROW = 16  # parts up to this width have every pair tried, many parts at once

_SOURCE = (
    f"constexpr int NARROW = {NARROW};\n"
    r"""
#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

constexpr int64_t LANES = 64;
constexpr float NEVER = std::numeric_limits<float>::infinity();

struct Swap {
  float change = NEVER;
  int64_t back = 0, go = 0;
};

// Lanes of their own, since a minimum of floats is otherwise found one after another.
static int64_t lowest(const float* values, int64_t size) {
  const int64_t whole = size / LANES * LANES;
  float lane[LANES];
  std::fill(lane, lane + LANES, NEVER);
  for (int64_t at = 0; at < whole; at += LANES)
#pragma omp simd
    for (int64_t i = 0; i < LANES; i++)
      lane[i] = values[at + i] < lane[i] ? values[at + i] : lane[i];
  float least = *std::min_element(lane, lane + LANES);
  for (int64_t i = whole; i < size; i++) least = std::min(least, values[i]);
  int64_t at = 0;
  for (; at < whole; at += LANES) {
    int found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t i = 0; i < LANES; i++) found |= values[at + i] == least;
    if (found) break;
  }
  while (at < size && values[at] != least) at++;
  return std::min(at, size - 1);
}

struct Row {
  const float* weight;
  const float* A;
  int64_t columns;
  float* bent;    // the gradient of half the cost by what is lost
  uint8_t* goes;
  std::vector<float> alone, back, go, trial;
  std::vector<float> stays, gone;  // never, where a weight cannot come back, or go

  Row(const float* A, int64_t columns)
      : A(A),
        columns(columns),
        alone(columns),
        back(columns),
        go(columns),
        trial(columns),
        stays(columns),
        gone(columns) {}

  void enter(const float* row, float* gradient, uint8_t* mask) {
    weight = row, bent = gradient, goes = mask;
    for (int64_t i = 0; i < columns; i++) {
      alone[i] = row[i] * row[i] * A[i * columns + i];
      stays[i] = goes[i] && row[i] != 0 ? 0 : NEVER;
      gone[i] = goes[i] ? NEVER : 0;
    }
  }

  // What it costs to bring each weight back, or to let it go, by itself.
  void judge() {
#pragma omp simd
    for (int64_t i = 0; i < columns; i++) {
      const float slope = 2 * weight[i] * bent[i];
      back[i] = alone[i] - slope + stays[i];
      go[i] = alone[i] + slope + gone[i];
    }
  }

  // The best partner, out of a part, of one weight that comes back or goes.
  int64_t partner(int64_t one, const float* of, int64_t start, int64_t width, float& change) {
    const float twice = 2 * weight[one];
    const float* shared = A + one * columns + start;
#pragma omp simd
    for (int64_t i = 0; i < width; i++)
      trial[i] = of[start + i] - twice * weight[start + i] * shared[i];
    const int64_t found = lowest(trial.data(), width);
    change = trial[found];
    return start + found;
  }

  // Two tries: the best to come back alone, and the best to go alone.
  void wide(int64_t start, int64_t width, Swap& best) {
    const int64_t i = start + lowest(&back[start], width), j = start + lowest(&go[start], width);
    if (back[i] == NEVER || go[j] == NEVER) return;
    float change;
    const int64_t other = partner(i, go.data(), start, width, change);
    if (change + back[i] < best.change) best = {change + back[i], i, other};
    const int64_t one = partner(j, back.data(), start, width, change);
    if (change + go[j] < best.change) best = {change + go[j], one, j};
  }

  // All pairs of parts whose k-th features lie together: `crossed` has A of the k-th and l-th.
  void narrow(int64_t parts, int64_t width, const float* crossed, Swap& best) {
    for (int64_t k = 0; k < width; k++)
      for (int64_t l = 0; l < width; l++) {
        if (k == l) continue;
        const float *one = &back[k * parts], *other = &go[l * parts];
        const float *own = weight + k * parts, *its = weight + l * parts;
        const float* shared = crossed + (k * width + l) * parts;
#pragma omp simd
        for (int64_t p = 0; p < parts; p++)
          trial[p] = one[p] + other[p] - 2 * own[p] * its[p] * shared[p];
        const int64_t p = lowest(trial.data(), parts);
        if (trial[p] < best.change) best = {trial[p], k * parts + p, l * parts + p};
      }
  }

  void swap(const Swap& one) {
    goes[one.back] = 0, goes[one.go] = 1;
    stays[one.back] = NEVER, gone[one.back] = 0;
    stays[one.go] = weight[one.go] != 0 ? 0 : NEVER, gone[one.go] = NEVER;
    const float lost = weight[one.go], kept = weight[one.back];
    const float *gone = A + one.go * columns, *came = A + one.back * columns;
#pragma omp simd
    for (int64_t i = 0; i < columns; i++) bent[i] += lost * gone[i] - kept * came[i];
  }
};

extern "C" void swap_rows(const float* weight, const float* A, const float* crossed,
                          const float* least, int64_t first, int64_t last, int64_t columns,
                          int64_t parts, float* bent, uint8_t* goes) {
  Row row(A, columns);
  const int64_t width = columns / parts;
  for (int64_t at = first; at < last; at++) {
    row.enter(weight + at * columns, bent + at * columns, goes + at * columns);
    for (int64_t done = 0; done < columns; done++) {
      row.judge();
      Swap best;
      if (width <= NARROW)
        row.narrow(parts, width, crossed, best);
      else
        for (int64_t start = 0; start < columns; start += width) row.wide(start, width, best);
      if (!(best.change < -least[at])) break;
      row.swap(best);
    }
  }
}
"""
)


def swap_rows(
    weight: Tensor, goes: Tensor, A: Tensor, parts: Tensor, bent: Tensor, least: Tensor
) -> Tensor | None:
    """The mask after swaps, as `gpprune.prune.update.swaps.swapped`; None where it cannot be built.

    Args:
        weight: ``[rows, in]``, float32 on the CPU.
        goes: bool ``[rows, in]``.
        A: ``[in, in]``, likewise float32.
        parts: int64 ``[parts, width]``.
        bent: ``[rows, in]``, what the rows lose (the aim less what stays), times A.
        least: ``[rows]``, what a swap is to gain at least.
    """
    built = native.functions(_SOURCE, swap_rows="ppppnnnnpp")
    if built is None:
        return None
    (run,) = built
    count, width = parts.shape
    is_narrow = width <= NARROW
    order = (parts.t() if is_narrow else parts).reshape(-1)
    weight, bent = weight[:, order].contiguous(), bent[:, order].contiguous()
    least = least.contiguous()
    A, found = A[order[:, None], order].contiguous(), goes[:, order].contiguous()
    crossed = A
    if is_narrow:
        place = torch.arange(len(order)).view(width, count)
        crossed = A[place[:, None], place[None, :]].contiguous()  # [width, width, parts]
    rows, columns = weight.shape
    shares = native.shares(rows, columns)
    read = [array.data_ptr() for array in (weight, A, crossed, least)]
    written = bent.data_ptr(), found.data_ptr()

    def share(at: int) -> None:
        run(*read, *shares[at], columns, count, *written)

    native.together(share, len(shares))
    return found[:, order.argsort()]
