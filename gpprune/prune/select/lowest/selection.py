"""The lowest scores of each row, by selection: an exact count, and ties broken one way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpprune.prune.select.lowest.bisection import WIDEST, lowest_by_bisection
from gpprune.prune.select.lowest.groups import WIDEST_GROUP, lowest_of_groups
from gpprune.prune.select.lowest.histogram import lowest_by_histogram


def has_nan(scores: Tensor) -> bool:
    """Whether any score is NaN: a minimum hands it through, far faster than looking for it."""
    if scores.numel() == 0:
        return False
    if scores.device.type == "cpu":
        return bool(np.isnan(_array(scores).min()))
    return bool(torch.isnan(scores.amin()))


def lowest(scores: Tensor, count: int) -> Tensor:
    """True at exactly the ``count`` lowest scores of each row, lower index first among equals.

    The same choice as the first ``count`` indices of ``torch.sort(scores, stable=True)``, on a
    CPU at a small part of its time.

    Args:
        scores: ``[rows, columns]``, any floating dtype, without NaN.
        count: between 0 and ``columns``.

    Returns:
        A bool tensor ``[rows, columns]``.
    """
    rows, columns = scores.shape
    if count <= 0 or rows == 0:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    if count >= columns:
        return torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    if scores.device.type != "cpu":
        # An accelerator sorts fast, and a selection there is no faster.
        order = torch.sort(scores, dim=1, stable=True).indices[:, :count]
        mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        return mask.scatter_(1, order, True)
    if scores.dtype != torch.float64:
        found = _built(columns)(scores.detach().float(), count)
        if found is not None:
            return found
    # without a compiler, and for the rare scores that are wider than a key
    select = _by_rank if columns <= WIDEST_GROUP else _by_threshold
    return torch.from_numpy(select(_array(scores), count))


def _built(columns: int) -> Callable[[Tensor, int], Tensor | None]:
    """The selection in C++ that is fastest for rows of so many columns."""
    if columns <= WIDEST_GROUP:
        return lowest_of_groups
    return lowest_by_bisection if columns <= WIDEST else lowest_by_histogram


def _array(scores: Tensor) -> NDArray[Any]:
    """A CPU tensor as a numpy array, in a dtype that numpy has and orders fast."""
    # numpy rather than torch: one thread without barriers, whose small steps cost the same
    # beside a busy neighbour, and a vectorised selection that torch lacks.
    half = scores.dtype in (torch.bfloat16, torch.float16)
    array: NDArray[Any] = (scores.float() if half else scores).detach().numpy()
    return array


def _by_threshold(scores: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Everything up to each row's ``count``-th lowest score, less the surplus of ties."""
    threshold = np.partition(scores, count - 1, axis=1)[:, count - 1 : count]
    mask: NDArray[np.bool_] = scores <= threshold
    if np.count_nonzero(mask) != len(scores) * count:
        rows = np.flatnonzero(np.count_nonzero(mask, axis=1) > count)
        tied = scores[rows] == threshold[rows]
        below = mask[rows] & ~tied
        room = count - np.count_nonzero(below, axis=1, keepdims=True)
        mask[rows] = below | (tied & (np.cumsum(tied, axis=1) <= room))
    return mask


def _by_rank(scores: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Each score's rank in its short row, by comparing every pair of columns."""
    columns = np.ascontiguousarray(scores.T)
    ranks = np.empty(columns.shape, dtype=np.int8)
    for later, column in enumerate(columns):
        ranks[later] = later
        for earlier in range(later):
            # Of equal scores the earlier one ranks lower.
            behind = (column < columns[earlier]).view(np.int8)
            ranks[earlier] += behind
            ranks[later] -= behind
    return np.ascontiguousarray((ranks < count).T)
