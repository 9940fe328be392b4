"""How a layer's scores `[out, in]` are arranged into groups that compete, `[groups, width]`.

What is chosen of them is put back by a reshape, where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gpprune.errors import UsageError


class Misfit(UsageError):
    """A layer's shape that a pattern cannot arrange; its message says what is wrong with it."""


def check_divisible(count: int, by: int, what: str) -> None:
    """See that so many input features or output neurons fall into groups.

    Raises:
        Misfit: they do not.
    """
    if count % by:
        raise Misfit(f"its {count} {what} are not divisible by {by}")


def each_row(scores: Tensor) -> Tensor:
    """Each row by itself."""
    return scores


def whole(scores: Tensor) -> Tensor:
    """The layer as one group."""
    return scores.reshape(1, -1)


def row_bands(rows: int, scores: Tensor) -> Tensor:
    """So many consecutive rows together."""
    check_divisible(scores.shape[0], rows, "output neurons")
    return scores.reshape(-1, rows * scores.shape[1])


def column_bands(columns: int, scores: Tensor) -> Tensor:
    """So many consecutive columns together, row by row."""
    check_divisible(scores.shape[1], columns, "input features")
    bands = scores.reshape(scores.shape[0], -1, columns).transpose(0, 1)
    return bands.reshape(-1, scores.shape[0] * columns)


def from_column_bands(columns: int, chosen: Tensor, shape: Sequence[int]) -> Tensor:
    """What is chosen of `column_bands`, put back into a layer of this shape."""
    return chosen.reshape(-1, shape[0], columns).transpose(0, 1).reshape(tuple(shape))


def groups_of(size: int, scores: Tensor) -> Tensor:
    """So many consecutive weights of a row together."""
    check_divisible(scores.shape[1], size, "input features")
    return scores.reshape(-1, size)


def reshaped(chosen: Tensor, shape: Sequence[int]) -> Tensor:
    """What is chosen of groups in the layer's own order, put back."""
    return chosen.reshape(tuple(shape))
