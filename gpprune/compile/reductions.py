"""Reductions of a value held at its natural shape `[out or 1, in or 1]`.

Sums run in float64, so that neither cancellation nor the number of blocks shows in float32. In
blocks that lie in cache they take no longer than float32's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpprune.compile.program import Reduce
from gpprune.primitives.weights.lowering import saturate

_DIMENSION = {"out": 0, "in": 1}
ROUNDING = 1e-14


@dataclass
class Partial:
    """What has been seen of a value so far: moments or an extremum along the reduced axes."""

    count: int
    first: Tensor
    second: Tensor | None = None


def partial(reduce: Reduce, value: Tensor) -> Partial:
    """Reduce one value or one block of rows, shape `[rows or 1, in or 1]`, in float64."""
    dims = [0, 1] if reduce.axis == "all" else [_DIMENSION[reduce.axis]]
    count = _product([value.shape[d] for d in dims])
    if reduce.kind in ("min", "max"):
        extremum = value.amin if reduce.kind == "min" else value.amax
        return Partial(count, extremum(dims, keepdim=True))
    wide = value.double()
    if reduce.kind == "norm":
        return Partial(count, (wide * wide).sum(dims, keepdim=True))
    total = wide.sum(dims, keepdim=True)
    if reduce.kind in ("sum", "mean"):
        return Partial(count, total)
    centred = wide - total / count
    return Partial(count, total, (centred * centred).sum(dims, keepdim=True))


def merge(reduce: Reduce, a: Partial, b: Partial) -> Partial:
    """Two parts of one value, stacked along "out", as one.

    Args:
        reduce: the reduction.
        a: of some rows.
        b: of the rows below them.
    """
    if reduce.axis == "in":
        return Partial(a.count, torch.cat([a.first, b.first]))
    if reduce.kind in ("min", "max"):
        pick = torch.minimum if reduce.kind == "min" else torch.maximum
        return Partial(a.count + b.count, pick(a.first, b.first))
    count, total = a.count + b.count, a.first + b.first
    if a.second is None or b.second is None:
        return Partial(count, total)
    # Chan, Golub and LeVeque 1979: parallel variance without cancellation
    apart = b.first / b.count - a.first / a.count
    spread = a.second + b.second + apart * apart * (a.count * b.count / count)
    return Partial(count, total, spread)


def finish(reduce: Reduce, found: Partial, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The reduction's value.

    Args:
        reduce: the reduction.
        found: what was seen of all rows: `[rows, 1]`, `[1, in]` or `[1, 1]`, where an axis that
            the reduced value does not vary along is 1.
        shape: `(out_features, in_features)` of the matrix, to which the reduced value counts as
            broadcast.
        dtype: of the result.

    Returns:
        At the shape of `found`, in float32's finite range.
    """
    axes = {"out", "in"} if reduce.axis == "all" else {reduce.axis}
    sizes = {"out": shape[0], "in": shape[1]}
    count = _product([sizes[axis] for axis in ("out", "in") if axis in axes & reduce.over])
    repeats = count / found.count
    if reduce.kind in ("min", "max"):
        value = found.first
    elif reduce.kind == "sum":
        value = found.first * repeats
    elif reduce.kind == "mean":
        value = found.first / found.count
    elif reduce.kind == "norm":
        value = (found.first * repeats).sqrt()
    else:
        value = _deviation(reduce.kind, found, repeats, count)
    return saturate(value).to(dtype)


def _deviation(kind: str, found: Partial, repeats: float, count: int) -> Tensor:
    if found.second is None:
        raise RuntimeError(f"{kind} was reduced without its second moment")
    squares = found.second * repeats
    if kind == "std1" and count == 1:
        return torch.zeros_like(squares)
    value = (squares / (count if kind == "std" else count - 1)).sqrt()
    # what a constant leaves behind is its rounding, not a deviation
    return torch.where(value <= ROUNDING * (found.first / found.count).abs(), 0.0, value)


def _product(sizes: Iterable[int]) -> int:
    """`math.prod`, which torch.compile cannot trace with dynamic shapes."""
    count = 1
    for size in sizes:
        count = count * size
    return count
