"""The order of input features in which N:M keeps the most of their scores.

RIA's channel permutation (Zhang et al. 2024, ICLR, section 3.3) for any scores: features are dealt
into groups by their sums, then exchanged between groups by linear sum assignment. Its code forms
each pair of group and feature to see what would be kept. Here one distance says it: of M - 1 fixed
scores and a new one x, the N highest sum to those above the N-th of the fixed ones, t, and
max(t, x) = (t + x + |t - x|) / 2, so that groups and features are assigned by sum |t - x|.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor

Scores = Callable[[], Iterable[Tensor]]
"""Gives scores ``[rows, channels]``, matrix by matrix, and the same when it is asked again."""
Columns = Callable[[], Iterable[Tensor]]  # the same with a row for each channel

_SWEEPS = 20  # at most
_GAIN = 1e-4  # a share: sweeps that keep no more than so much more are without gain
_STILL = 3  # as many such sweeps in a row are the last: each exchanges among others
_TOGETHER = 1024  # groups between which features are exchanged at once, at most
_HELD = 1 << 28  # scores that are held while an order is sought, 1 GiB; of more, they are made anew


def kept_score(scores: Scores, kept: int, size: int, order: Tensor | None = None) -> float:
    """The sum of the scores that N:M keeps.

    Args:
        scores: see `Scores`.
        kept: the N: how many scores of a group stay.
        size: the M, which divides the channels: how many are a group.
        order: int64 ``[channels]``, which channel comes to each place; None: as they are.
    """
    return _kept(lambda: map(_columns, scores()), kept, size, order)


def _kept(scores: Columns, kept: int, size: int, order: Tensor | None) -> float:
    total = 0.0
    for columns in scores():
        channels = torch.arange(len(columns)) if order is None else order
        groups = channels.to(columns.device).reshape(-1, size).unbind(1)
        for highest in _highest((columns[place] for place in groups), kept):
            total += float(highest.sum(dtype=torch.float64))
    return total


@torch.no_grad()
def channel_order(scores: Scores, kept: int, size: int) -> Tensor:
    """An order of channels in which N:M keeps no less of their scores than in the given one.

    Args:
        scores: see `Scores`; finite.
        kept: the N: how many scores of a group stay.
        size: the M, which divides the channels: how many are a group.

    Returns:
        Int64 ``[channels]``: which channel comes to each place.
    """
    columns = _held(scores)
    groups = _dealt(columns, size)
    start = torch.arange(groups.numel())
    if kept >= size or len(groups) < 2:
        return start
    generator = torch.Generator().manual_seed(0)
    best, still = _kept(columns, kept, size, groups.flatten()), 0
    for _ in range(_SWEEPS):
        groups = _shuffled(groups, generator)
        for place in range(size):
            _exchange(columns, groups, place, kept)
        reached = _kept(columns, kept, size, groups.flatten())
        still = still + 1 if reached - best <= _GAIN * abs(best) else 0
        best = reached
        if still == _STILL:
            break
    return groups.flatten() if best > _kept(columns, kept, size, None) else start


def _held(scores: Scores) -> Columns:
    """Scores channel by channel, held where they are not too many."""
    held, count = [], 0
    for matrix in scores():
        held.append(_columns(matrix))
        count += matrix.numel()
        if count > _HELD:
            return lambda: map(_columns, scores())
    return lambda: held


def _dealt(scores: Columns, size: int) -> Tensor:
    """Channels in groups ``[groups, size]``, dealt in a snake: each has one of every size."""
    sums = reduce(torch.add, (part.sum(1, dtype=torch.float64).cpu() for part in scores()))
    shares = sums.argsort(stable=True).reshape(size, -1)
    shares[1::2] = shares[1::2].flip(1)
    return shares.T.contiguous()


def _shuffled(groups: Tensor, generator: torch.Generator) -> Tensor:
    """Groups and their channels in another order, so that others are exchanged."""
    groups = groups[torch.randperm(len(groups), generator=generator)]
    places = torch.rand(groups.shape, generator=generator).argsort(1)
    return groups.gather(1, places)


def _exchange(scores: Columns, groups: Tensor, place: int, kept: int) -> None:
    """Exchange the channels at one place between groups, in place, so that most is kept."""
    from scipy.optimize import linear_sum_assignment  # late: it takes a while to load

    blocks = torch.arange(len(groups)).tensor_split(-(-len(groups) // _TOGETHER))
    gains = [torch.zeros(len(block), len(block), dtype=torch.float64) for block in blocks]
    for columns in scores():
        for block, gain in zip(blocks, gains, strict=True):
            own = groups[block].to(columns.device)
            others = [columns[own[:, at]] for at in range(own.shape[1]) if at != place]
            least = _highest(others, kept)[-1]  # what a new channel's scores have to exceed
            gain += torch.cdist(least, columns[own[:, place]], p=1).cpu()
    for block, gain in zip(blocks, gains, strict=True):
        _, chosen = linear_sum_assignment(gain.numpy(), maximize=True)
        groups[block, place] = groups[block[torch.from_numpy(chosen)], place]


def _columns(matrix: Tensor) -> Tensor:
    """A row for each channel, ``[channels, rows]``."""
    return matrix.float().T.contiguous()


def _highest(scores: Iterable[Tensor], count: int) -> Sequence[Tensor]:
    """The highest of several tensors, element by element, in descending order."""
    highest: list[Tensor] = []
    for own in scores:
        rest = own
        for at, held in enumerate(highest):
            highest[at], rest = torch.maximum(held, rest), torch.minimum(held, rest)
        if len(highest) < count:
            highest.append(rest)
    return highest
