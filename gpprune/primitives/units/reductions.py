"""Reductions of weights to one number a unit: NumPy functions of float32 values.

Each is total: finite in, finite out, saturating where float32 does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpprune.primitives.units.functions import Layout, Matrix, Values
from gpprune.primitives.weights.lowering import TINY

_EPSILON = float(np.finfo(np.float32).eps)


# Elements to units: one unit's values


def _finite(value: float) -> float:
    largest = torch.finfo(torch.float32).max
    return min(max(float(value), -largest), largest)


def mean(values: Values) -> float:
    """The mean."""
    return float(values.mean(dtype=np.float64))


def _central(values: Values) -> tuple[NDArray[np.float64], float]:
    """The values less their mean, and their variance: 0 where only rounding is left."""
    wide = values.astype(np.float64)
    centre = wide.mean()
    wide -= centre
    found = float(np.vdot(wide, wide)) / wide.size
    return wide, found if math.sqrt(found) > 1e-14 * abs(centre) else 0.0


def variance(values: Values) -> float:
    """The population variance; 0 where only rounding is left."""
    return _finite(_central(values)[1])


def deviation(values: Values) -> float:
    """The population standard deviation."""
    return math.sqrt(_central(values)[1])


def l1(values: Values) -> float:
    """The sum of |x|."""
    return _finite(np.abs(values).sum(dtype=np.float64))


def l2(values: Values) -> float:
    """The root of the sum of squares: the Frobenius norm."""
    wide = values.astype(np.float64)
    return _finite(math.sqrt(float(np.vdot(wide, wide))))


def largest(values: Values) -> float:
    """The greatest value."""
    return float(values.max())


def quantile(values: Values, share: float) -> float:
    """The value at place floor(share * (count - 1)) from below."""
    # of the decimal number that was written: in binary 0.29 * 100 is 28.999...
    place = math.floor(Decimal(repr(min(max(share, 0.0), 1.0))) * (values.size - 1))
    return float(np.partition(values, place)[place])


def outliers(values: Values, times: float) -> float:
    """The share of values above `times` their mean."""
    with np.errstate(over="ignore"):  # nothing lies above what float32 has no number for
        least = np.float32(times * mean(values))
    return float(np.count_nonzero(values > least)) / values.size


def entropy(values: Values) -> float:
    """The entropy of |x| taken as probabilities, in nats; 0 where all are 0."""
    sizes = np.abs(values).astype(np.float64)
    total = sizes.sum()
    if total == 0:
        return 0.0
    sizes = sizes[sizes > 0] / total
    return float(-(sizes * np.log(np.maximum(sizes, 5e-324))).sum())


def geomean(values: Values) -> float:
    """The geometric mean of |x|, each at least the smallest normal float32."""
    return float(np.exp(np.log(np.maximum(np.abs(values).astype(np.float64), TINY)).mean()))


def kurtosis(values: Values) -> float:
    """The fourth central moment over the squared variance; 0 where x is constant."""
    wide, square = _central(values)
    if square <= 0:
        return 0.0
    wide /= math.sqrt(square)
    wide *= wide
    return _finite(float(np.vdot(wide, wide)) / wide.size)


# Elements to units: one layer's matrix


def spectrum(matrix: Matrix) -> NDArray[np.float64]:
    """The eigenvalues of the smaller Gram matrix, ascending: the squared singular values."""
    wide = matrix.astype(np.float64)
    scale = np.abs(wide).max()
    if scale == 0:
        return np.zeros(min(matrix.shape))
    wide /= scale
    gram = wide @ wide.T if matrix.shape[0] <= matrix.shape[1] else wide.T @ wide
    found: NDArray[np.float64] = np.linalg.eigvalsh(gram).clip(min=0) * scale**2
    return found


def matrix_rank(matrix: Matrix) -> float:
    """The number of singular values above float32's rounding of the greatest."""
    squares = spectrum(matrix)
    least = squares[-1] * (max(matrix.shape) * _EPSILON) ** 2
    return float(np.count_nonzero(squares > least))


def logdet(matrix: Matrix) -> float:
    """The log-determinant of the Gram matrix, eigenvalues at least the smallest float32."""
    return float(np.log(np.maximum(spectrum(matrix), TINY)).sum())


def hill(matrix: Matrix) -> float:
    """Hill's tail exponent of the upper half of the squared singular values."""
    logs = np.log(np.maximum(spectrum(matrix), TINY))
    return _hill(logs, len(logs) // 2)


def hill_peak(matrix: Matrix) -> float:
    """Hill's exponent of the tail from about the peak of the spectrum that fits best.

    As AlphaPruning's "alpha_peak" (Lu et al. 2024, arXiv 2410.10912): the tail may
    begin between 0.95 and 1.5 times the peak of the histogram of log10 eigenvalues in 100 bins,
    where its Kolmogorov-Smirnov distance to the fitted power law is least. (In its code the lower
    bound is log10 of 0.95 times the peak, which admits every smaller eigenvalue but the
    negative-logarithm ones; that is kept.)
    """
    squares = np.maximum(spectrum(matrix), TINY)
    logs = np.log(squares)
    peak = 10.0 ** _peak(np.log10(squares))
    low, high = math.log10(0.95 * peak), 1.5 * peak
    best, found = math.inf, 1.0
    for start in range(len(squares) - 1):
        if squares[start] < low:
            continue
        if squares[start] > high:
            break
        exponent = _hill(logs, start)
        tail = squares[start:] / squares[start]
        steps = np.arange(len(tail)) / len(tail)
        apart = float(np.abs(1 - tail ** (1 - exponent) - steps).max()) if exponent > 1 else 1.0
        if apart < best:
            best, found = apart, exponent
    return _finite(found)


def _peak(logs: NDArray[np.float64]) -> float:
    """Where the fullest of 100 bins begins; of values that only rounding tells apart, the least."""
    edges = np.linspace(logs[0], logs[-1], 101)
    if logs[0] < logs[-1] and bool((edges[:-1] >= edges[1:]).any()):
        return float(logs[0])
    counts, edges = np.histogram(logs, bins=100)
    return float(edges[int(np.argmax(counts))])


def _hill(logs: NDArray[np.float64], start: int) -> float:
    excess = float((logs[start:] - logs[start]).sum())
    return 1 + (len(logs) - start) / excess if excess > 0 else 1.0


# Elements to units: the whole model


def threshold(values: Sequence[Values], units: Layout) -> Tensor:
    """The share of each unit that goes under one threshold for all.

    Values equal to the threshold go in equal shares everywhere, so the order of units is nothing.
    """
    total = sum(part.size for part in values)
    count = round(units.target * total)
    if count <= 0 or count >= total:
        return torch.full((len(values),), float(count >= total), dtype=torch.float64)
    bits = [_sortable(part) >> 16 for part in values]
    counts = np.stack([np.bincount(part, minlength=1 << 16) for part in bits])
    upto = counts.sum(0).cumsum()
    cell = int(np.searchsorted(upto, count))  # the bin that holds the threshold
    within = [part[place == cell] for part, place in zip(values, bits, strict=True)]
    place = count - int(upto[cell] - counts[:, cell].sum()) - 1
    cut = np.partition(np.concatenate(within), place)[place]
    below = counts[:, :cell].sum(1) + np.array([np.count_nonzero(w < cut) for w in within])
    tied = np.array([np.count_nonzero(w == cut) for w in within])
    gone = below + tied * ((count - below.sum()) / tied.sum())
    return torch.tensor(gone / np.array([part.size for part in values]), dtype=torch.float64)


def _sortable(values: Values) -> NDArray[np.uint32]:
    """Integers in the order of float32 values (-0 is 0)."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)
    negative = bits >> np.uint32(31)
    flip = np.where(negative == 1, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    return bits ^ flip
